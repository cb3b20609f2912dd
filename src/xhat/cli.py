"""The command line: xhat train | sample | evaluate | inspect | compare | report | gradients."""

import difflib
import sys
import warnings
from collections.abc import Callable, Sequence

COMMANDS = {
    "train": "train a model, or resume training with --resume",
    "sample": "draw images from a trained model",
    "evaluate": "measure a trained model: FID, KID, readable digits, penalties, error per noise level",
    "inspect": "show what a preset or config optimizes, and what a step costs, before training; or what differs between two",
    "compare": "train one config with each of a list of changes, and measure all alike",
    "report": "write one HTML page about runs or a study",
    "gradients": "show how each term pulls at each noise level, and how gradients grow along a chain",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors of use are one line on stderr and exit code 2; a reader that goes away ends it quietly."""
    from xhat.commands.terminal import NOBODY_READS, discard, make_printable

    make_printable()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:  # also after --help, which ends by SystemExit
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        return NOBODY_READS


def _run(arguments: list[str]) -> int:
    from xhat import __version__
    from xhat.commands.terminal import note, say

    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"xhat {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        say(f'xhat: unknown command "{name}": {hint}')
        return 2
    with warnings.catch_warnings():  # what an earlier command of this process has said is said again
        warnings.showwarning = lambda message, *where: note(str(message))
        return _guarded(name, rest)


def _guarded(name: str, rest: list[str]) -> int:
    """The command's exit code, its errors of use said."""
    from xhat.commands.terminal import say
    from xhat.errors import XhatError

    try:
        return _command(name)(rest)
    except XhatError as error:
        message = str(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        message = f"cannot read or write{where}: {error.strerror or error}"
    except KeyboardInterrupt:
        return 130
    except (Exception, SystemExit) as error:
        message = _of_parts(error)
    say(f"xhat {name}: {message}")
    return 2


def _of_parts(error: BaseException) -> str:
    """One line on an error of a user's own part; any other is raised again."""
    from xhat.config.use import place_of, used_files
    from xhat.errors import with_kind

    place = place_of(error)
    if place is None and isinstance(error, NotImplementedError) and used_files():
        place = ", ".join(file.name for file in used_files())
    if place is None:
        raise error
    return f"{place}: {with_kind(error)}"


def _command(name: str) -> Callable[[Sequence[str]], int]:
    """Each command imports what it needs, so that --help is quick."""
    import importlib

    run: Callable[[Sequence[str]], int] = importlib.import_module(f"xhat.commands.{name}").run
    return run


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
        f"presets: {', '.join(preset_names())}",
    ]
    return "\n".join(lines)
