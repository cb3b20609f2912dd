"""The command line: xhat train | sample | evaluate | inspect | compare | report | average | export | gradients."""

import contextlib
import difflib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

COMMANDS = {
    "train": "train a model, or resume training with --resume",
    "sample": "draw images from a trained model",
    "evaluate": "measure a trained model: FID, KID, readable digits, penalties, error per noise level",
    "inspect": "show what a preset or config optimizes, and what a step costs, before training; or what differs between two",
    "compare": "train one config with each of a list of changes, and measure all alike",
    "report": "write one HTML page about runs or a study",
    "average": "make an average of a run's weights of any width, once it is trained",
    "export": "write a trained run as diffusers, ONNX Runtime or torch read it",
    "gradients": "show how each term pulls at each noise level, and how gradients grow along a chain",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors of use are one line on stderr and exit code 2; a reader that goes away ends it quietly."""
    try:
        return _main(argv)
    except KeyboardInterrupt:  # while modules are imported: nobody listens yet
        return 128 + signal.SIGINT


def _main(argv: Sequence[str] | None) -> int:
    from xhat.commands.terminal import NOBODY_READS, discard, make_printable
    from xhat.distributed import end_one_of_several, end_with_parent

    make_printable()
    if argv is None:
        end_with_parent()
        os.environ["PYTHONSAFEPATH"] = "1"  # nor do the processes that libraries start import from the current folder
    try:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv), alone=argv is None)
        finally:  # also after --help, which ends by SystemExit
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        code = NOBODY_READS
    if argv is None:
        end_one_of_several(code)
    return code


def _run(arguments: list[str], *, alone: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        from xhat import __version__

        print(f"xhat {__version__}")
        return 0
    from xhat.commands.terminal import note, say

    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        say(f'xhat: unknown command "{name}": {hint}')
        return 2
    with warnings.catch_warnings():  # what an earlier command of this process has said is said again
        warnings.showwarning = lambda message, *where: note(str(message))
        return _guarded(name, rest, alone=alone)


def _guarded(name: str, rest: list[str], *, alone: bool) -> int:
    """The command's exit code, its errors said; `alone` where the process has nothing else to do."""
    from xhat.commands.signals import Ended, as_outside, ended_at_once, ended_by_signals
    from xhat.commands.terminal import say

    try:
        with ended_at_once() if alone else contextlib.nullcontext():
            read = _of(f"xhat.commands.{name}", "read")
            with ended_by_signals():
                asked = read(rest)
                with as_outside():
                    act = _of(f"xhat.commands.actions.{name}", "act")
                return int(act(asked))
    except KeyboardInterrupt:
        return 130
    except Ended as ended:
        return 128 + ended.number
    except BrokenPipeError:
        raise
    except (Exception, SystemExit) as error:
        if "--debug" in rest and not isinstance(error, SystemExit):
            traceback.print_exc()
        code, message = _said(error)
        if message:
            say(f"xhat {name}: {message}")
        return code


def _said(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and one line about it; that of an error of xhat's own says how to see more."""
    from xhat.distributed import main_process
    from xhat.errors import SharedError, XhatError, first_line, out_of_memory, with_kind

    if isinstance(error, XhatError):
        return 2, "" if isinstance(error, SharedError) and not main_process() else str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f" {error.filename}" if error.filename else ""
        return 2, f"cannot read or write{where}: {error.strerror or error}"
    if out_of_memory(error):
        return 2, f"there is not enough memory ({first_line(error)[:120]}): choose smaller numbers, see --help"
    place = _of_parts(error)
    if place is None and isinstance(error, SystemExit):
        raise error
    if place is None:
        return 1, f"an error of xhat's own: {with_kind(error)}: please report it, with what --debug shows"
    return 2, f"{place}: {with_kind(error)}"


def _of_parts(error: BaseException) -> str | None:
    """Where in a user's own part an error came from; None if it did not."""
    if "xhat.config.use" not in sys.modules:
        return None
    from xhat.config.use import place_of, used_files

    place = place_of(error)
    if place is None and isinstance(error, NotImplementedError) and used_files():
        place = ", ".join(file.name for file in used_files())
    return place


def _of(module: str, name: str) -> Callable[[Any], Any]:
    """A function of a module that is imported when it is needed: arguments are read without torch."""
    import importlib

    found: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return found


def _help() -> str:
    from xhat.config.presets import preset_names

    lines = [
        "xhat trains diffusion models on the loss you mean.",
        "",
        "usage: xhat COMMAND ...        (xhat COMMAND --help tells more)",
        "",
        *(f"  {name:<10} {text}" for name, text in COMMANDS.items()),
        "",
        "  xhat train mnist --run runs/digits                      a few minutes on a laptop",
        "  xhat train mnist --run runs/mine --data path/to/images  the same on your own images",
        "  xhat sample runs/digits --n 64 --out digits.npz         images as an array, a picture beside it",
        "  xhat train my.yaml --run runs/own --use my_parts.py     with networks, losses and data of your own",
        "",
        "exit codes: 0 done; 2 something to mend, said in one line; 1 an error of xhat's own, which --debug shows;",
        "            130, 143, 129 stopped by Ctrl-C, SIGTERM, SIGHUP, what was trained is saved; 141 nobody reads any more",
        "",
        f"presets: {', '.join(preset_names())}",
    ]
    return "\n".join(lines)
