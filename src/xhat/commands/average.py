"""The arguments of xhat average."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xhat.commands.parsing import add_force, add_use, new_parser
from xhat.errors import UsageError
from xhat.files.ours import require_free

DESCRIPTION = """Make an average of a run's weights of any width, once it is trained (post-hoc EMA, Karras et al. 2024).

A training with --averages_every 500 keeps averages of two widths every 500 steps, and at its end. This writes the sum of them
that weighs the steps of the training as the width asked for would, as nearly as it can be had. The file is one to sample from:
xhat sample FILE, xhat evaluate FILE, xhat train --init FILE. The width is the standard deviation of the weights over the
steps, as a share of the training; that of ema.safetensors is the option ema. Which is best is found by trying some."""


def read(argv: Sequence[str]) -> Any:
    """Which run, which average, and where it goes.

    Raises:
        UsageError: one line.
    """
    parser = new_parser("average", DESCRIPTION)
    add_use(parser)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--width", type=float, required=True, help="relative width, above 0, at most 0.28")
    parser.add_argument("--step", type=int | None, default=None, help="of the training up to here; default its last")
    parser.add_argument("--out", metavar="FILE.safetensors", required=True, help="where the weights go")
    add_force(parser, "a file that is there already")
    options = parser.read(argv)
    run, out = Path(options.run), Path(options.out)
    if not 0 < options.width <= 0.28:
        raise UsageError(f"--width is above 0 and at most 0.28, got {options.width:g}")
    if not run.is_dir():
        raise UsageError(f"{run} is no run folder: name the one that was trained with --averages_every")
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: the file must end in .safetensors")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist")
    require_free(out, force=options.force)
    return options
