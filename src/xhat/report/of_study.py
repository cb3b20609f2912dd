"""The contents of a report on a study: each change, over its seeds, is one entry."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xhat.report.collect import Group, collect, subtitle
from xhat.report.comparable import common_levels
from xhat.report.contents import SECONDS, Contents
from xhat.report.measured import How, Measured, measured
from xhat.report.page import write_page
from xhat.runs.used import require_used, used_by
from xhat.studies.outcome import Outcome
from xhat.studies.study import FINISHED, Study

Failed = Mapping[str, Mapping[int, str]]


def study_how(study: Study, folders: Sequence[Path]) -> How:
    """How the runs of a study are measured: all alike, at the noise levels that all of them have."""
    levels = common_levels(folders)
    return How(samples=study.samples, penalties=dict(study.penalties), logsnr=levels, features=study.features)


def study_contents(study: Study, out: Path, failed: Failed, watch: bool = False) -> tuple[Contents, bool]:
    """The contents of a study's page, and whether there is nothing to wait for.

    Args:
        study: what is compared.
        out: its folder.
        failed: change -> seed -> what went wrong.
        watch: leave out what is still training.
    """
    runs = {run: study.folder(out, *run) for run in study.runs}
    for folder in runs.values():
        require_used(used_by(folder), folder)
    ended = {run for run, folder in runs.items() if (folder / FINISHED).exists()}
    waiting = [run for run in runs if run not in ended and run[1] not in failed.get(run[0], {})]
    how = study_how(study, [runs[run] for run in study.runs if run in ended])
    groups = [_group(study, out, change, how, failed.get(change, {}), watch) for change in study.changes]
    missing = sum(len(g.outcome.failed) for g in groups)
    notes = [f"{missing} of {len(runs)} runs are missing: the reasons stand below."] if missing else []
    refresh = SECONDS if watch and waiting else None
    below = f"{subtitle(groups, how)}; seeds {', '.join(map(str, study.seeds))}"
    title = study.title or "xhat study"
    return collect(title, below, groups, list(study.penalties), notes=notes, refresh=refresh), not waiting


def _group(study: Study, out: Path, change: str, how: How, failed: Mapping[int, str], watch: bool) -> Group:
    """A change over its seeds; what is not trained or cannot be measured is said of its seed."""
    runs = {seed: study.folder(out, change, seed) for seed in study.seeds}
    problems, found = dict(failed), dict[int, Measured]()
    for seed, folder in runs.items():
        if (folder / FINISHED).exists() and seed not in problems:
            try:
                found[seed] = measured(folder, how)
            except (OSError, RuntimeError, ValueError) as error:
                problems[seed] = f"not measured: {' '.join(str(error).split())}"
        elif seed not in problems and not watch:
            problems[seed] = "not trained yet"
    folders = [folder for seed, folder in runs.items() if folder.exists() and seed not in problems]
    outcome = Outcome.of(change, {seed: m.numbers for seed, m in found.items()}, problems, study.seeds)
    return Group(change, folders, list(found.values()), study.config(change, study.seeds[0]), outcome)


def report_study(study: Study, out: Path, failed: Failed) -> Path:
    """Write the page of a study that has run; its path.

    Raises:
        OSError or ValueError: it cannot be written, or nothing can be shown.
    """
    page = out / "report.html"
    write_page(study_contents(study, out, failed)[0], page)
    return page
