"""The arguments of xhat compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xhat.commands.parsing import add_use, new_parser
from xhat.errors import UsageError
from xhat.studies.read import read_study

DESCRIPTION = """Train one base config with each of a list of changes, from the same weights, with the same data order and
noise, and measure all alike: the variational bound, the error above the floor, FID, penalties of samples, time of a step.

STUDY.yaml names a base (preset or .yaml), common values, changes (name: {dotted key: value}), seeds, samples, penalties, and
features, a registered network that distances are measured in where the shipped one reads no such images. Runs are kept in
--out, with a report.html; called again, the command continues where it stopped. What cannot be told from the best by the spread
between seeds is marked as a tie (=)."""


def read(argv: Sequence[str]) -> Any:
    """What to compare, and where its runs go.

    Raises:
        UsageError or YamlError: one line.
    """
    parser = new_parser("compare", DESCRIPTION)
    add_use(parser)
    parser.add_argument("study", metavar="STUDY.yaml", help="what to compare")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the runs")
    jobs = "runs at a time, in processes of their own (default: one for each core, at most 8; one if there is a GPU)"
    parser.add_argument("--jobs", type=int | None, default=None, help=jobs)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.read(argv)
    if options.jobs is not None and options.jobs < 1:
        raise UsageError("--jobs must be at least 1")
    read_study(Path(options.study))
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: --out names a folder")
    return options
