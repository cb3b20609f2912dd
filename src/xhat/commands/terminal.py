"""What a command writes beside its files: results on stdout, a progress bar and notes on stderr.

No command fails because of who reads it: signs that an encoding lacks are replaced, and a reader may go away.
"""

import codecs
import contextlib
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress

from xhat.distributed import main_process
from xhat.errors import one_line
from xhat.files.values import for_json

SIGNS = {"±": "+-", "²": "^2", "³": "^3", "·": "*", "½": "1/2", "–": "-", "‖": "|", "∝": "~", "█": "#", "▉": "#", "▊": "#"}
SIGNS |= dict.fromkeys("▋▌▍▐", "=") | dict.fromkeys("▎▏▕", "-")
"""What stands for a sign in an encoding that lacks it: cp1252 has no blocks, ASCII none of them."""
NOBODY_READS = 141
"""The exit code of a command whose output nobody reads any more: 128 + SIGPIPE, as the shell says of other tools."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in lost), error.end


codecs.register_error("xhat", _replaced)


def make_printable() -> None:
    """Let stdout and stderr replace what their encoding lacks, unless PYTHONIOENCODING already says how."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "backslashreplace") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="xhat")


def discard(stream: TextIO) -> None:
    """Send the rest to nowhere: what is left in the buffer would fail again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise


def console(stderr: bool = False) -> Console:
    """A console that takes text as it is: names and paths are whatever the user chose."""
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def progress_bar() -> Progress:
    """A bar on stderr that leaves no trace; nothing at all where stderr is no terminal."""
    out = console(stderr=True)
    return Progress(console=out, transient=True, disable=not (out.is_terminal and main_process()))


def say(message: str) -> None:
    """One line on stderr, whatever names are in it; whoever read it may be gone, and the command goes on."""
    try:
        print(one_line(message), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def note(message: str) -> None:
    """One line on stderr about something that did not stop the command."""
    say(f"xhat: note: {message}")


def note_once(message: str) -> None:
    """A `note` about what all processes of a command see alike, of the first of them."""
    if main_process():
        note(message)


def notes(messages: Iterable[str]) -> None:
    """A `note` for each."""
    for message in messages:
        note(message)


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on stdout, null for a number that is not finite: JSON has none."""
    print(json.dumps(for_json(result), allow_nan=False))
