"""Parsers that turn every mistake into one line, and configs from presets, files and options."""

import argparse
import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from xhat.config.config import Config
from xhat.config.presets import preset_names
from xhat.config.yaml_files import parse_yaml, read_mapping
from xhat.errors import DuplicateKeyError, UsageError, YamlError
from xhat.files import write_bytes

BUDGETS = ("max_steps", "max_images", "max_minutes")


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line, with the nearest options for a misspelt one.

    Attributes:
        recipe: parsed values that take the place of the defaults. They are not given as jsonargparse's default_config_files,
            which it finds by a pattern, reads in the locale's encoding, and whose folder all threads of the process enter.
    """

    recipe: jsonargparse.Namespace | None = None

    def read(self, argv: Sequence[str]) -> jsonargparse.Namespace:
        """Parse.

        Raises:
            UsageError or YamlError: anything that does not fit.
        """
        for argument in argv:
            _require_single_keys(argument)
        with self._in_one_line():
            return self.parse_args(list(argv), namespace=self.recipe)

    def read_values(self, values: Mapping[str, Any]) -> jsonargparse.Namespace:
        """Parse values by their keys, and nothing beside them.

        Raises:
            UsageError: anything that does not fit.
        """
        with self._in_one_line():
            parsed: jsonargparse.Namespace = self.parse_object(dict(values), defaults=False)
            return parsed

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except (argparse.ArgumentError, jsonargparse.ArgumentError, TypeError, ValueError) as error:
            raise UsageError(self._one_line(str(error))) from None

    def _one_line(self, message: str) -> str:
        flat = re.sub(r"\s+", " ", message).strip()
        unknown = re.search(r"unrecognized arguments: (\S+)|Option '([^']+)' is not accepted", flat)
        if unknown:
            name = unknown.group(1) or unknown.group(2)
            known = [o for action in self._actions for o in action.option_strings]
            close = difflib.get_close_matches(f"--{name.lstrip('-').split('=')[0]}", known, n=3, cutoff=0.6)
            what = "option" if name.startswith("-") else "option or config key"
            hint = f"did you mean {' or '.join(close)}?" if close else f"see {self.prog} --help"
            return f'unknown {what} "{name}": {hint}'
        wrong = re.search(r'key "([^"]+)":.*Given value: (.*)$|key "([^"]+)":.*Got value: (.*)$', flat)
        if wrong:
            key, given = wrong.group(1) or wrong.group(3), wrong.group(2) or wrong.group(4)
            kinds = dict.fromkeys(
                re.sub(r"<class '(\w+)'>", r"\1", k) for k in re.findall(r"Expected an? (.*?)(?= - |\. Got| Given|$)", flat)
            )
            kinds.pop("NoneType", None)
            return f"{key}: expected {' or '.join(kinds).replace('typing.Literal', 'one of ')}, got {given}"
        missing = re.search(r"arguments are required: (.*)$", flat)
        if missing:
            options = {o for action in self._actions for o in action.option_strings}
            names = [f"--{n}" if f"--{n}" in options else n.upper() for n in missing.group(1).split(", ")]
            return f"{', '.join(names)} is needed, see {self.prog} --help"
        return flat


def _require_single_keys(argument: str) -> None:
    """Refuse --terms '{a: 1, a: 2}'; an option given twice is an override, and fine."""
    value = argument.partition("=")[2] if argument.startswith("--") else argument
    if value.lstrip().startswith("{"):
        try:
            parse_yaml(value, shlex.quote(argument))
        except DuplicateKeyError:
            raise
        except YamlError:  # a name like another
            return


def new_parser(command: str, description: str) -> Parser:
    """The parser of a command."""
    return Parser(prog=f"xhat {command}", description=description, exit_on_error=False, allow_abbrev=False)


def recipe_path(recipe: str) -> Path:
    """The YAML of a preset's name, or the file itself.

    Raises:
        UsageError: neither exists; with the nearest names.
    """
    if recipe in preset_names():
        with as_file(files("xhat.config") / "presets" / f"{recipe}.yaml") as path:
            return path
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_dir():
            raise UsageError(f"{recipe} is a folder: name a preset, and the folder with --data {shlex.quote(recipe)}")
        if not path.is_file():
            raise UsageError(f"config {recipe} does not exist")
        return path
    close = difflib.get_close_matches(recipe, preset_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(preset_names())}, or a .yaml file"
    raise UsageError(f'unknown preset "{recipe}": {hint}')


def read_config(path: Path) -> Config:
    """The config of a YAML file, defaults filled in.

    Raises:
        UsageError or YamlError: it is not YAML, or has a wrong or unknown value; named.
    """
    parser = config_parser("config", "", read_mapping(path))
    return to_config(parser.read([]), parser)


def config_parser(command: str, description: str, values: Mapping[str, Any] | None) -> Parser:
    """A parser with an option for each config value, whose defaults come from a recipe's values."""
    parser = new_parser(command, description)
    parser.add_class_arguments(Config)
    parser.recipe = None if values is None else parser.read_values(values)  # while it has no other arguments
    return parser


def to_config(parsed: jsonargparse.Namespace, parser: Parser) -> Config:
    """The config among parsed options."""
    names = [f.name for f in fields(Config)]
    made = parser.instantiate(parsed)
    return Config(**{name: made[name] for name in names})


def write_config(config: Config, path: Path) -> None:
    """Write a config as YAML that `xhat train` and `read_config` read back."""
    values = asdict(config)
    values["optimizer"]["betas"] = list(values["optimizer"]["betas"])
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()
    if not path.exists() or path.read_bytes() != text:
        write_bytes(path, text)


def differences(a: Config, b: Config, ignored: Sequence[str]) -> list[str]:
    """Lines "key: value of a, value of b" for the values in which two configs differ."""
    found = {k: v for k, v in changed_values(a, b).items() if k.split(".")[0] not in ignored}
    return [f"{key}: {there} there, {here} here" for key, (there, here) in found.items()]


def changed_values(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> value in a, value in b, where they differ; "absent" for a key that only the other has."""
    first, second = _flat(asdict(a)), _flat(asdict(b))
    values = {k: (first.get(k, "absent"), second.get(k, "absent")) for k in {**first, **second}}
    return {k: (x, y) for k, (x, y) in values.items() if x != y}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
