"""Command lines: parsers that turn every mistake into one line, with the nearest options."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jsonargparse

from xhat.commands.signals import as_outside
from xhat.config.config import Config, TermConfig
from xhat.config.parsing import Parser, nearest
from xhat.config.yaml_files import parse_yaml
from xhat.errors import DuplicateKeyError, TooLargeError, UsageError, YamlError

LONGEST = 1000
"""Letters of an argument that is looked at only where it looks like a mapping."""

COMPILE = "compile the network first: some twenty seconds, repaid by thousands of samples"


class CommandParser(Parser):
    """The parser of a command.

    Attributes:
        recipe: parsed values that take the place of the defaults. They are not given as jsonargparse's default_config_files,
            which it finds by a pattern, reads in the locale's encoding, and whose folder all threads of the process enter.
    """

    recipe: jsonargparse.Namespace | None = None

    def read(self, argv: Sequence[str]) -> jsonargparse.Namespace:
        """Parse, and run the files of --use: their parts are names from then on.

        Raises:
            UsageError or YamlError: anything that does not fit.
        """
        for argument in argv:
            _require_sound(argument)
        with self.in_one_line(UsageError):
            options = self.parse_args(list(argv), namespace=self.recipe)
        if files := options.get("use"):
            with as_outside():
                from xhat.config.use import use  # with it come torch and all parts that a file may build on

            use(files)
        return options

    def one_line(self, message: str) -> str:
        """What to say instead of a message of jsonargparse's."""
        unknown = re.search(r"unrecognized arguments: (\S+)|Option '([^']+)' is not accepted", message)
        options = [o for action in self._actions for o in action.option_strings]
        if unknown:
            name = unknown.group(1) or unknown.group(2)
            what = "option" if name.startswith("-") else "option or config key"
            return f'unknown {what} "{name}": {self._nearest(name, options)}'
        missing = re.search(r"arguments are required: (.*)$", message)
        if missing:
            names = [f"--{n}" if f"--{n}" in options else n.upper() for n in missing.group(1).split(", ")]
            return f"{', '.join(names)} is needed, see {self.prog} --help"
        return super().one_line(message)

    def _nearest(self, name: str, options: Sequence[str]) -> str:
        return nearest(f"--{name.lstrip('-').split('=')[0]}", options, f"see {self.prog} --help")


def _require_sound(argument: str) -> None:
    """Refuse --terms '{a: 1, a: 2}', and what is too large to be read; an option given twice is an override, and fine."""
    value = argument.partition("=")[2] if argument.startswith("--") else argument
    if value.lstrip().startswith(("{", "[")) or "\n" in value or len(value) > LONGEST:
        try:
            parse_yaml(value, " ".join(shlex.quote(argument).split())[:80])
        except (DuplicateKeyError, TooLargeError):
            raise
        except YamlError:  # a name like another
            return


def new_parser(command: str, description: str) -> CommandParser:
    """The parser of a command, without its arguments. From now on this process imports no module that a value names."""
    own = f"{TermConfig.__module__}.{TermConfig.__qualname__}"  # by which jsonargparse knows what a term is made of
    jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[own])
    parser = CommandParser(prog=f"xhat {command}", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    return parser


def add_use(parser: CommandParser) -> None:
    """The option that brings a user's own parts."""
    told = "a file of your own parts, each after @xhat.register: its code is run; give the option again for several files"
    parser.add_argument("--use", action="append", default=[], metavar="FILE.py", help=told)


def config_parser(command: str, description: str, values: Mapping[str, Any] | None) -> CommandParser:
    """A parser with an option for each config value, whose defaults come from a recipe's values.

    Raises:
        ConfigError: a value of the recipe does not fit.
    """
    parser = new_parser(command, description)
    parser.add_class_arguments(Config)
    parser.recipe = None if values is None else parser.read_values(values)  # while it has no other arguments
    add_use(parser)
    return parser


def add_force(parser: CommandParser, what: str = "a file that is there already") -> None:
    """The option that lets what a command writes take the place of what is there."""
    parser.add_argument("--force", action="store_true", help=f"replace {what}")
