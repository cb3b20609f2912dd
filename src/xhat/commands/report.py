"""xhat report."""

import time
from collections.abc import Sequence
from pathlib import Path

from xhat.commands.parsing import add_force, add_use, new_parser
from xhat.commands.terminal import note
from xhat.errors import UsageError
from xhat.files.ours import require_free
from xhat.report.contents import SECONDS, Contents
from xhat.report.of_runs import runs_contents
from xhat.report.of_study import study_contents
from xhat.report.page import write_page
from xhat.studies.study import STUDY_FILE, study_from_file

DESCRIPTION = """Write one HTML page about runs, which needs no network to be read: samples from the same noise, how they came
about, the error at each noise level with the floor that no denoiser can go below, the loss weighting, the bound step by step,
penalties against quality, what differs between the configs.

RUN is a run folder, or the folder of a study (xhat compare --out). What is measured is kept in the runs' folders. With --watch
the page is written anew every ten seconds until training ends, and an open page shows it; runs are measured as they end."""

SAMPLES = 1000


def run(argv: Sequence[str]) -> int:
    """Write one HTML page about runs or a study, once or until training has ended.

    Args:
        argv: what follows `xhat report`.

    Returns:
        0.

    Raises:
        XhatError: one line; nothing is written.
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
    out, folders = Path(options.out), [Path(r) for r in options.runs]
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
    require_free(out, force=options.force, ours=True)
    samples: int = SAMPLES if options.n is None else options.n
    if samples < 2:
        raise UsageError("--n must be at least 2")
    if options.n is not None and _is_study(folders):
        note(f"--n {samples} has no effect: the study says how many")
    while True:
        contents, ended = _contents(folders, samples, options.watch)
        write_page(contents, out, force=options.force)
        if ended or not options.watch:
            break
        time.sleep(SECONDS)
    print(f"report: {out}")
    return 0


def _is_study(folders: Sequence[Path]) -> bool:
    return len(folders) == 1 and (folders[0] / STUDY_FILE).exists()


def _contents(folders: Sequence[Path], samples: int, watch: bool) -> tuple[Contents, bool]:
    """The contents of the page, and whether there is nothing to wait for."""
    if not _is_study(folders):
        return runs_contents(folders, samples, watch)
    study, failed = study_from_file(folders[0] / STUDY_FILE)
    return study_contents(study, folders[0], failed, watch)
