"""What xhat report does."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xhat.commands.terminal import note
from xhat.report.contents import SECONDS, Contents
from xhat.report.of_runs import runs_contents
from xhat.report.of_study import study_contents
from xhat.report.page import write_page
from xhat.studies.study import STUDY_FILE, study_from_file

SAMPLES = 1000


def act(options: Any) -> int:
    """Write one HTML page about runs or a study, once or until training has ended.

    Args:
        options: those of `xhat report`.

    Returns:
        0.

    Raises:
        XhatError: one line; nothing is written.
    """
    out, folders = Path(options.out), [Path(r) for r in options.runs]
    samples: int = SAMPLES if options.n is None else options.n
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
