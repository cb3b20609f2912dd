"""xhat compare."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from xhat.commands.parsing import new_parser
from xhat.commands.report import report_study, require_comparable, study_how
from xhat.commands.tables import new_table, number_column, show_table, text_column
from xhat.commands.terminal import console, print_json, say
from xhat.config.yaml_files import read_yaml
from xhat.errors import UsageError
from xhat.evaluation.denoising import LEVELS
from xhat.report.collect import QUANTITIES
from xhat.report.measured import How, measured
from xhat.runs.lock import reserved
from xhat.studies.outcome import Outcome, best
from xhat.studies.study import FINISHED, STUDY_FILE, Study, run_study, study_to_file

DESCRIPTION = """Train one base config with each of a list of changes, from the same weights, with the same data order and
noise, and measure all alike: the variational bound, the error above the floor, FID, penalties of samples, time of a step.

STUDY.yaml names a base (preset or .yaml), common values, changes (name: {dotted key: value}), seeds, samples, penalties. Runs
are kept in --out, with a report.html; called again, the command goes on where it stopped. What cannot be told from the best
by the spread between seeds is marked as a tie (=)."""

SHOWN = {"bits": "bound", "excess": "excess", "fid": "fid", "read": "read", "fewest": "rarest", "milliseconds": "ms/step"}
LOWER = ("bits", "excess", "fid")
WITH_SE = ("bits", "excess")
MOST_JOBS, LONGEST_NAME = 8, 200
FIXED = ("seed", "run", "resume", "help")


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = new_parser("compare", DESCRIPTION)
    parser.add_argument("study", metavar="STUDY.yaml", help="what to compare")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the runs")
    jobs = "runs at a time, in processes of their own (default: one for each core, at most 8; one if there is a GPU)"
    parser.add_argument("--jobs", type=int | None, default=None, help=jobs)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.read(argv)
    if options.jobs is not None and options.jobs < 1:
        raise UsageError("--jobs must be at least 1")
    study = read_study(Path(options.study))
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: --out names a folder")
    with reserved(out, "comparing in", "--out"):
        return _compare(study, out, options)


def _compare(study: Study, out: Path, options: Any) -> int:
    study_to_file(out / STUDY_FILE, study, {})
    measure = _Measure(study, out)
    outcomes = run_study(study, out, measure, jobs=options.jobs or _room(), say=say)
    failed = {o.name: o.failed for o in outcomes if o.failed}
    study_to_file(out / STUDY_FILE, study, failed)
    page = report_study(study, out, failed)
    if options.json:
        changes = [{**dataclasses.asdict(o), "summary": _summary(o)} for o in outcomes]
        print_json({"study": options.study, "real": measure.real, "changes": changes, "report": str(page) if page else None})
    else:
        _show(study, outcomes, measure, page)
    return 0 if any(o.values for o in outcomes) else 1


def read_study(path: Path) -> Study:
    """A study from YAML, every run's config checked.

    Raises:
        UsageError or YamlError: names what is wrong, and in which change.
    """
    from xhat.commands.inspect import shape_of
    from xhat.commands.train import resolve
    from xhat.config.build import build_denoiser, build_objective, build_penalty, build_sampling
    from xhat.config.config import Config
    from xhat.data.shape import DataShape

    if not path.is_file():
        raise UsageError(f"study {path} does not exist")
    values = read_yaml(path)
    known = {f.name for f in dataclasses.fields(Study)}
    if not isinstance(values, dict) or not isinstance(values.get("changes"), dict) or not values["changes"]:
        raise UsageError(f"{path} names no changes: write changes: {{name: {{dotted key: value}}}}")
    if unknown := sorted(set(values) - known):
        raise UsageError(f"{path}: unknown key {unknown[0]}; known: {', '.join(sorted(known))}")
    changes = {str(name): own if own is not None else {} for name, own in values["changes"].items()}
    kinds: dict[str, type] = {"common": dict, "penalties": dict, "seeds": list, "samples": int, "base": str, "title": str}
    for key, kind in kinds.items():
        if key in values and not isinstance(values[key], kind):
            raise UsageError(f"{path}: {key} must be a {kind.__name__}, got {values[key]!r}")
    for change, own in changes.items():
        if not isinstance(own, dict):
            raise UsageError(f'{path}: change "{change}" must be {{dotted key: value}}, got {own!r}')
    if "penalties" in values:
        values["penalties"] = {str(name): str(text) for name, text in values["penalties"].items()}
    study = Study(**{"title": path.stem, **values, "changes": changes})
    if not study.seeds or not all(isinstance(s, int) for s in study.seeds) or study.samples < 2:
        raise UsageError(f"{path}: seeds must be whole numbers, samples at least 2")
    if len(set(study.seeds)) < len(study.seeds):
        raise UsageError(f"{path}: a seed is named twice, and would give the same run twice")
    for change, own in changes.items():
        if fixed := [key for key in (*study.common, *own) if key in FIXED]:
            raise UsageError(f'{path}: change "{change}": {fixed[0]} is no value of a change: the study sets it')
    folders = [study.folder(Path(), change, 0) for change in study.changes]
    if len(set(folders)) < len(folders):
        raise UsageError(f"{path}: two changes have the same name but for signs; their runs need two folders")
    for change, folder in zip(study.changes, folders, strict=True):
        if len(folder.parent.name) > LONGEST_NAME:
            raise UsageError(f"{path}: a change's name is its folder's: {LONGEST_NAME} letters at most, got {change[:20]}...")
    shapes: dict[str, DataShape] = {}
    configs: dict[str, Config] = {}
    for change in study.changes:
        try:
            configs[change] = config = resolve([*study.options(change, study.seeds[0]), "--run", "checked"])[0]
            shape = shapes.setdefault(f"{config.data} {config.image_size} {config.labels}", shape_of(config))
            build_objective(config, denoiser := build_denoiser(config, shape))
            build_sampling(config.sampling, denoiser.schedule)
        except ValueError as error:
            raise UsageError(f'{path}: change "{change}": {error}') from None
    try:
        require_comparable(configs)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    shape = next(iter(shapes.values()))
    images = torch.zeros(2, shape.channels, shape.size, shape.size)
    for name, text in study.penalties.items():
        if name in QUANTITIES:
            raise UsageError(f"{path}: penalties.{name}: {name} is measured already, choose another name")
        try:
            if build_penalty(text)(images).shape != (2,):
                raise ValueError(f"{text} has no value for each image")
        except (AttributeError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: penalties.{name}: {error}") from None
    return study


class _Measure:
    """The numbers of a trained run; all runs of the study are measured alike."""

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.folders = study, [study.folder(out, c, s) for c in study.changes for s in study.seeds]
        self.real: dict[str, float] = {}

    def __call__(self, folder: Path) -> Mapping[str, float]:
        found = measured(folder, self.how)
        self.real = found.real
        return found.numbers

    @cached_property
    def how(self) -> How:
        """Known once all runs are trained: the noise levels that all of them have."""
        return study_how(self.study, [f for f in self.folders if (f / FINISHED).exists()])


def _room() -> int:
    """Small networks train faster alone on a core than together on several."""
    return 1 if torch.cuda.is_available() else min(MOST_JOBS, os.cpu_count() or 1)


def _summary(outcome: Outcome) -> dict[str, dict[str, float]]:
    known = [q for q in outcome.values if not q.endswith("_se")]
    return {q: {"mean": outcome.mean(q), "sd": outcome.sd(q), "se": outcome.se(q)} for q in known}


def _show(study: Study, outcomes: list[Outcome], measure: _Measure, page: Path | None) -> None:
    out = console()
    shown = {**SHOWN, **{p: p.replace("_", " ") for p in study.penalties}}
    quantities = [q for q in shown if any(q in o.values for o in outcomes)]
    numbers = [number_column(shown[quantity].replace(" ", "\n")) for quantity in quantities]
    table = new_table(text_column("change", at_least=12), *numbers, gap=1)
    first = {q: best(outcomes, q) for q in LOWER}
    for outcome in outcomes:
        table.add_row(outcome.name, *(_cell(outcome, q, first.get(q)) for q in quantities))
    show_table(out, table)
    for outcome in outcomes:
        for seed, line in outcome.failed.items():
            out.print(f"{outcome.name}, seed {seed} failed: {line}", soft_wrap=True)
    out.print(f"real images: {'  '.join(f'{name} {value:.3g}' for name, value in measure.real.items())}")
    within = measure.how.logsnr or LEVELS
    out.print(
        "bound: bits/dim of held-out images ± standard error; "
        f"excess: the same within logsnr {within[0]:g} to {within[-1]:g}, above the floor"
    )
    out.print("read: share read as a digit with confidence >= 0.9; rarest: how often the rarest is read, 1 = the mean")
    seeds = len(study.seeds)
    told = (
        f"FID ±: standard deviation between {seeds} seeds; " if seeds > 1 else "one seed: nobody knows how far seeds differ; "
    )
    out.print(f"{told}* the lowest, = not to be told from it")
    if page:
        out.print(f"report: {page}", soft_wrap=True)


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
