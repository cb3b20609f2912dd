"""Mistakes in how a benchmark is called: one line and exit code 2, before anything is measured."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from xhat.errors import XhatError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def count(text: str) -> int:
    """A whole number of at least 1, as a parser's type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def folder(text: str) -> Path:
    """A folder that exists, as a parser's type."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"the folder {text} does not exist")
    return Path(text)


def guarded(main: Callable[[], None]) -> None:
    """Run a benchmark; what its user can mend is one line."""
    try:
        main()
    except XhatError as error:
        message = str(error)
    except OSError as error:
        message = f"cannot read or write {error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        return
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(2)


def counts(**defaults: int) -> list[int]:
    """Positional whole numbers of the command line, in this order, each with its default."""
    parser = Parser()
    for name, default in defaults.items():
        parser.add_argument(name, nargs="?", type=count, default=default, metavar=name.upper())
    given = vars(parser.parse_args())
    return [given[name] for name in defaults]
