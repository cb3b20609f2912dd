"""Configs out of files and plain values, and into files: types are checked, every mistake is one line."""

import argparse
import contextlib
import copy
import difflib
import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml

from xhat.config.config import LATER_KEYS, Config, TermConfig, to_values
from xhat.config.earlier import upgraded
from xhat.config.options import Options
from xhat.config.presets import preset_names
from xhat.config.yaml_files import read_mapping
from xhat.errors import ConfigError, UsageError, XhatError
from xhat.files.atomic import read_bytes, write_bytes

CHECKSUM = "# written by xhat, sha256 "
Kind = TypeVar("Kind", bound=Options)


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line."""

    def read_values(self, values: Mapping[str, Any], kind: type[Options] = Config) -> jsonargparse.Namespace:
        """Parse the values of a config by their keys, and nothing beside them.

        Args:
            values: by key.
            kind: what they are values of.

        Raises:
            ConfigError: anything that does not fit.
        """
        _require_known(values, kind())
        with self.in_one_line(ConfigError):
            own = copy.deepcopy(dict(values))  # jsonargparse writes into it
            parsed: jsonargparse.Namespace = self.parse_object(own, defaults=False)
            return parsed

    @contextlib.contextmanager
    def in_one_line(self, kind: type[XhatError]) -> Iterator[None]:
        """Let whatever goes wrong within be an error of this kind, in one line."""
        try:
            yield
        except (argparse.ArgumentError, jsonargparse.ArgumentError, TypeError, ValueError) as error:
            raise kind(self.one_line(re.sub(r"\s+", " ", str(error)).strip())) from None

    def one_line(self, message: str) -> str:
        """What to say instead of a message of jsonargparse's."""
        if named := re.search(r"(?:Parser key \"([^\"]+)\".*)?Importing '([^']+)' is not allowed", message):
            return f"{named.group(1) or 'a value'}: {named.group(2)} is no value: values name parts of xhat, and those of --use"
        wrong = re.search(r'key "([^"]+)":.*Given value: (.*)$|key "([^"]+)":.*Got value: (.*)$', message)
        if not wrong:
            return message
        key, given = wrong.group(1) or wrong.group(3), wrong.group(2) or wrong.group(4)
        kinds = dict.fromkeys(
            re.sub(r"<class '(\w+)'>", r"\1", k) for k in re.findall(r"Expected an? (.*?)(?= - |\. Got| Given|$)", message)
        )
        kinds.pop("NoneType", None)
        return f"{key}: expected {' or '.join(kinds).replace('typing.Literal', 'one of ')}, got {given}"


def _require_known(values: Mapping[str, Any], section: Any, prefix: str = "") -> None:
    """Refuse keys that a section of the config does not have, with the nearest ones; and plain values for whole sections."""
    known = {f.name: getattr(section, f.name) for f in fields(section)}
    for key, value in values.items():
        if key not in known:
            hint = nearest(str(key), known, f"known: {', '.join(known)}", prefix)
            raise ConfigError(f'unknown config key "{prefix}{key}": {hint}')
        inner = known[key]
        if value is None and type(None) not in get_args(get_type_hints(type(section))[key]):
            raise ConfigError(f"{prefix}{key} is empty: give it a value, or leave it out")
        if is_dataclass(inner):
            _require_known(_mapping(value, f"{prefix}{key}", inner), inner, f"{prefix}{key}.")
        elif isinstance(inner, dict):
            of_terms = get_args(get_type_hints(type(section))[key])[1] is TermConfig
            if not isinstance(value, Mapping):
                what = "terms" if of_terms else "expressions"
                raise ConfigError(f"{key} must be a mapping of names to {what}; got {value!r}")
            for name, term in value.items() if of_terms else ():
                _require_known(_mapping(term, f"{key}.{name}", TermConfig()), TermConfig(), f"{key}.{name}.")
        elif isinstance(value, Mapping):
            raise ConfigError(f"{prefix}{key} must be one value, not a mapping; got {value!r}")


def _mapping(value: Any, key: str, section: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise ConfigError(f"{key} must be a mapping of {', '.join(f.name for f in fields(section))}; got {value!r}")


def nearest(wrong: str, known: Iterable[str], otherwise: str, prefix: str = "", cutoff: float = 0.6) -> str:
    """ "did you mean a or b?" of a misspelt name; what else to say if none is near."""
    close = difflib.get_close_matches(wrong, list(known), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(f'{prefix}{c}' for c in close)}?" if close else otherwise


def config_of(values: Mapping[str, Any]) -> Config:
    """The config of the values that a person wrote, defaults filled in.

    Raises:
        ConfigError: a value or a key that does not fit; named.
    """
    return to_config(*_parsed(values, Config))


def options_of(values: Mapping[str, Any]) -> Options:
    """The options that a person gave, by name, defaults filled in.

    Raises:
        ConfigError: a value or a name that does not fit; named.
    """
    import numpy as np

    sections = {k: asdict(v) for k, v in values.items() if is_dataclass(v) and not isinstance(v, type)}
    given = {k: v.item() if isinstance(v, np.generic) else v for k, v in {**values, **sections}.items()}
    return _made(*_parsed(given, Options), Options)


def _parsed(values: Mapping[str, Any], kind: type[Options]) -> tuple[jsonargparse.Namespace, Parser]:
    """Values of this kind, defaults filled in, and the parser that makes objects of them."""
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(kind)
    parsed = parser.read_values(values, kind)
    with parser.in_one_line(ConfigError):
        return parser.parse_args([], namespace=parsed), parser


def to_config(parsed: jsonargparse.Namespace, parser: Parser) -> Config:
    """The config among what was parsed.

    Raises:
        ConfigError: a number out of range.
    """
    return _made(parsed, parser, Config)


def _made(parsed: jsonargparse.Namespace, parser: Parser, kind: type[Kind]) -> Kind:
    made = parser.instantiate(parsed)
    return kind(**{f.name: made[f.name] for f in fields(kind)})


def read_config(path: Path) -> Config:
    """The config of a YAML file, defaults filled in.

    Raises:
        ConfigError: it is not YAML, or has a wrong or unknown value; named.
    """
    return config_of(read_recipe(path))


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a YAML file; a run's own config, known by keys that few write, in today's words.

    Raises:
        YamlError: it is not YAML.
    """
    values = read_mapping(path)
    return upgraded(values) if values.keys() >= {"checkpoint_every", "optimizer", "sampling", "seed"} else values


def names_every_key(values: Mapping[str, Any]) -> bool:
    """Whether values are those of a whole config, as that of a run is."""
    return values.keys() >= {f.name for f in fields(Config)}


def write_config(config: Config, path: Path) -> None:
    """Write a config as YAML that `xhat train` and `read_config` read back; a file that says the same is left as it is.

    Its last line, a comment, is a checksum of the others, see `was_edited`.
    """
    text = yaml.safe_dump(to_values(config), sort_keys=False, allow_unicode=True).encode()
    text += f"{CHECKSUM}{hashlib.sha256(text).hexdigest()}\n".encode()
    if not path.exists() or read_bytes(path) != text:
        write_bytes(path, text)


def was_edited(path: Path) -> bool:
    """Whether a config that `write_config` wrote says something else since then; one of an earlier version says nothing of it.

    Raises:
        OSError: it cannot be read.
    """
    data = read_bytes(path)
    above, mark, checksum = data.rpartition(CHECKSUM.encode())
    if not mark:  # as in one of an earlier version, which has no comment, and is whole
        lacking = {f.name for f in fields(Config)} - read_mapping(path).keys() - set(LATER_KEYS)
        return b"#" in data or not data.endswith(b"\n") or bool(lacking)
    return f"{hashlib.sha256(above).hexdigest()}\n".encode() != checksum


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
    hint = nearest(recipe, preset_names(), f"known: {', '.join(preset_names())}, or a .yaml file", cutoff=0.5)
    raise UsageError(f'unknown preset "{recipe}": {hint}')
