"""The arguments of xhat report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xhat.commands.parsing import add_force, add_use, new_parser
from xhat.errors import UsageError
from xhat.files.ours import require_free

DESCRIPTION = """Write one HTML page about runs, which needs no network to be read: samples from the same noise, how they came
about, the error at each noise level with the floor that no denoiser can go below, the loss weighting, the bound step by step,
penalties against quality, what differs between the configs.

RUN is a run folder, or the folder of a study (xhat compare --out). What is measured is kept in the runs' folders. With --watch
the page is written anew every ten seconds until training ends, and an open page shows it; runs are measured as they end."""


def read(argv: Sequence[str]) -> Any:
    """What to report on, and where the page goes.

    Raises:
        UsageError: one line.
    """
    parser = new_parser("report", DESCRIPTION)
    add_use(parser)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or one folder of a study")
    parser.add_argument("--out", default="report.html", metavar="FILE.html", help="where the page goes")
    drawn = "drawn from each run for FID and penalties (1000); studies have their own"
    parser.add_argument("--n", type=int | None, default=None, help=drawn)
    parser.add_argument("--watch", action="store_true", help="write the page anew until the runs have ended")
    add_force(parser)
    options = parser.read(argv)
    for run in options.runs:
        if not Path(run).is_dir():
            raise UsageError(f"{run} holds no run: name folders of xhat train, or one of xhat compare")
    out = Path(options.out)
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
    require_free(out, force=options.force, ours=True)
    if options.n is not None and options.n < 2:
        raise UsageError("--n must be at least 2")
    return options
