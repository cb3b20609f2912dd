"""What xhat compare does."""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from xhat.budgets import cores
from xhat.commands.tables import new_table, number_column, show_table, text_column
from xhat.commands.terminal import console, note, print_json, say
from xhat.config.config import Config
from xhat.config.features import features_for
from xhat.data.shape import DataShape
from xhat.errors import ConfigError, UsageError
from xhat.evaluation.denoising import LEVELS
from xhat.files.atomic import read_bytes
from xhat.pipelines.network import folder_of
from xhat.report.comparable import require_comparable, require_penalties, standing_penalties
from xhat.report.measured import How, measured
from xhat.report.of_study import report_study, study_how
from xhat.runs.lock import reserved
from xhat.studies.check import checked_configs
from xhat.studies.hacked import verdicts
from xhat.studies.outcome import Outcome, best
from xhat.studies.read import read_study
from xhat.studies.run import run_study
from xhat.studies.study import FINISHED, STUDY_FILE, Study, study_to_file

SHOWN = {
    "bits": "bound",
    "excess": "excess",
    "fid": "fid",
    "recall": "recall",
    "spectrum": "spectrum",
    "histogram": "values",
    "read": "read",
    "fewest": "rarest",
    "milliseconds": "ms/step",
}
LOWER = ("denoising", "bits", "excess", "fid", "spectrum", "histogram")
WITH_SE = ("denoising", "bits", "excess")
MOST_JOBS = 8


def act(options: Any) -> int:
    """Train the changes of a study that are not trained yet, measure all alike, and show and write a report.

    Args:
        options: those of `xhat compare`.

    Returns:
        0, or 1 if no change has any number.

    Raises:
        XhatError: one line; nothing is trained.
    """
    study, out = _checked(Path(options.study)), Path(options.out)
    _require_ours(study, out)
    with reserved(out, "comparing in", "--out") as held:
        return _compare(study, out, options, held)


def _compare(study: Study, out: Path, options: Any, held: int | None) -> int:
    study_to_file(out / STUDY_FILE, study, {})
    measure = _Measure(study, out)
    outcomes = run_study(study, out, measure, jobs=options.jobs or _room(), say=say, held=held)
    failed = {o.name: o.failed for o in outcomes if o.failed}
    study_to_file(out / STUDY_FILE, study, failed)
    page = _page(study, out, failed)
    if options.json:
        changes = [{**dataclasses.asdict(o), "summary": _summary(o)} for o in outcomes]
        told = [dataclasses.asdict(row) for row in verdicts(study, outcomes)]
        print_json(
            {
                "study": options.study,
                "real": measure.real,
                "changes": changes,
                "verdicts": told,
                "report": str(page) if page else None,
            }
        )
    else:
        _show(study, outcomes, measure, page)
    return 0 if any(o.values for o in outcomes) else 1


def _require_ours(study: Study, out: Path) -> None:
    """Refuse a folder whose files a study would write over, unless a study has written them.

    Raises:
        UsageError: names the first of them.
    """
    known = out / STUDY_FILE
    data = read_bytes(known) if known.is_file() else b""
    if data and b"xhat" not in data and b'"changes"' not in data:
        raise UsageError(f"{known} was not written by xhat: choose another --out, or move it away")
    if known.exists():
        return
    folders = [study.folder(out, change, 0).parent for change in study.changes]
    if taken := next((folder for folder in folders if folder.exists()), None):
        raise UsageError(f"{taken} exists already, and {out} holds no study: choose another --out, or move it away")


def _checked(path: Path) -> Study:
    """The study of a file, all of whose runs can be trained, measured and compared.

    Raises:
        UsageError or YamlError: names what is wrong, and in which change.
    """
    study = read_study(path)
    try:
        configs, shape = checked_configs(study)
        require_comparable(configs)
        config = next(iter(configs.values()))
        if study.penalties == Study({}).penalties:
            study = dataclasses.replace(study, penalties=standing_penalties(config, [shape]))
        require_penalties(study.penalties, config, shape)
        _require_features(study, config, shape)
    except (ConfigError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from None
    return study


def _require_features(study: Study, config: Config, shape: DataShape) -> None:
    """Refuse features that cannot be taken of the study's samples.

    Raises:
        ConfigError or UsageError: there are none of the name, they take no such images, or the samples are latents.
    """
    if study.features is None:
        return
    if folder_of(config.network) is not None:
        raise UsageError("features are of images, and this study's samples are latents: use xhat evaluate RUN --features")
    if (features := features_for(shape, study.features)) is not None:
        features.of(torch.zeros(2, *shape.sample, dtype=torch.uint8))


def _page(study: Study, out: Path, failed: dict[str, dict[int, str]]) -> Path | None:
    """The report; one that cannot be written costs a note, never the numbers."""
    try:
        return report_study(study, out, failed)
    except (OSError, ValueError) as error:
        note(f"cannot write {out / 'report.html'}: {getattr(error, 'strerror', None) or error}")
        return None


class _Measure:
    """The numbers of a trained run; all runs of the study are measured alike."""

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.folders = study, [study.folder(out, *run) for run in study.runs]
        self.real: dict[str, float] = {}
        self.problems: dict[str, None] = {}

    def __call__(self, folder: Path) -> Mapping[str, float]:
        found = measured(folder, self.how)
        self.real = found.real
        self.problems |= dict.fromkeys(found.problems)
        return found.numbers

    @cached_property
    def how(self) -> How:
        """Known once all runs are trained: the noise levels that all of them have."""
        return study_how(self.study, [f for f in self.folders if (f / FINISHED).exists()])


def _room() -> int:
    """Small networks train faster alone on a core than together on several."""
    return 1 if torch.cuda.is_available() else min(MOST_JOBS, cores())


def _summary(outcome: Outcome) -> dict[str, dict[str, float]]:
    known = [q for q in outcome.values if not q.endswith("_se")]
    return {q: {"mean": outcome.mean(q), "sd": outcome.sd(q), "se": outcome.se(q)} for q in known}


def _show(study: Study, outcomes: list[Outcome], measure: _Measure, page: Path | None) -> None:
    out = console()
    shown = {**SHOWN, **{p: p.replace("_", " ") for p in study.penalties}}
    if not all("excess" in o.values for o in outcomes if o.values):
        shown = {"denoising": "in range", **shown}  # nobody knows a floor for latents
    quantities = [q for q in shown if any(q in o.values for o in outcomes)]
    fields = "histogram" in quantities
    numbers = [number_column(shown[quantity].replace(" ", "\n")) for quantity in quantities]
    table = new_table(text_column("change", at_least=12), *numbers, gap=1)
    first = {q: best(outcomes, q) for q in LOWER}
    for outcome in outcomes:
        table.add_row(outcome.name, *(_cell(outcome, q, first.get(q)) for q in quantities))
    show_table(out, table)
    for outcome in outcomes:
        for seed, line in outcome.failed.items():
            out.print(f"{outcome.name}, seed {seed} failed: {line}", soft_wrap=True)
    out.print(
        f"real {'fields' if fields else 'images'}: {'  '.join(f'{name} {value:.3g}' for name, value in measure.real.items())}"
    )
    for line in measure.problems:
        out.print(line, soft_wrap=True)
    within = measure.how.logsnr or LEVELS
    ends = f"within logsnr {within[0]:g} to {within[-1]:g}"
    if "denoising" in quantities:
        out.print(f"in range: bits/dim of held-out samples {ends}, ± standard error")
    if "denoising" not in quantities or {"bits", "excess"} & set(quantities):
        what = f"held-out {'fields' if fields else 'images'}"
        out.print(f"bound: bits/dim of {what} ± standard error; excess: the same {ends}, above the floor")
    if fields:
        out.print("spectrum: mean difference of the power at each wavenumber, dB; values: distance of their histograms, in SD")
    if "read" in quantities:
        out.print("read: share read as a digit with confidence >= 0.9; rarest: how often the rarest is read, 1 = the mean")
    seeds = len(study.seeds)
    told = (
        f"{'spectrum, values' if fields else 'FID'} ±: standard deviation between {seeds} seeds; "
        if seeds > 1
        else "one seed: nobody knows how far seeds differ; "
    )
    out.print(f"{told}* the lowest, = not to be told from it")
    _show_verdicts(out, study, outcomes)
    if page:
        out.print(f"report: {page}", soft_wrap=True)


def _show_verdicts(out: Console, study: Study, outcomes: list[Outcome]) -> None:
    """What became of the penalties that a change was trained on, and of those that it never saw, beside the first change."""
    rows = verdicts(study, outcomes)
    if not rows:
        return
    out.print(f"\npenalties, FID and recall beside those of {outcomes[0].name}, seed by seed (Student, 95 %)")
    table = new_table(text_column("change", at_least=12), *(text_column(name) for name in ("trained on", "not seen", "so")))
    for row in rows:
        table.add_row(row.change, row.trained, row.unseen, row.verdict)
    show_table(out, table)


def _cell(outcome: Outcome, quantity: str, first: Outcome | None) -> str:
    mean: Any = outcome.mean(quantity)
    if mean != mean:
        return ""
    if quantity not in LOWER:  # their spreads stand in the report
        return f"{mean:.0f}" if quantity == "milliseconds" else f"{mean:.3f}"
    text = with_spread(mean, outcome.se(quantity) if quantity in WITH_SE else outcome.sd(quantity))
    return text + ("*" if outcome is first else "=" if first is not None and outcome.ties(first, quantity) else " ")


def with_spread(mean: float, spread: float) -> str:
    """mean±spread, to the first digit of the spread, or two where that is a 1; three digits of a mean without one."""
    if not spread > 0:  # nor NaN
        return f"{mean:.3g}"
    size = math.floor(math.log10(spread))
    places = max(0, -size + (spread < 2 * 10**size))
    return f"{mean:.{places}f}±{spread:.{places}f}"
