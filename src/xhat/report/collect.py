"""From what was measured of runs to the contents of a report."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xhat.config.changes import flat
from xhat.config.config import Config
from xhat.config.options import BUDGETS, ON_THE_WAY
from xhat.files.atomic import read_bytes
from xhat.report.contents import Column, Contents, Entry, Floor, Line, Mark, Number, Picture
from xhat.report.measured import FOLDER, How, Measured
from xhat.runs.environment import read_environment
from xhat.runs.metrics import read_metrics
from xhat.studies.outcome import Outcome, best

LOWER_IS_BETTER = ("bits", "denoising", "excess", "fid", "kid", "spectrum", "histogram")
OWN = ("run", "seed", *BUDGETS, *ON_THE_WAY)


@dataclass(frozen=True)
class Group:
    """One name in the report: a run, or the runs of a change, one for each seed.

    Attributes:
        name: as shown.
        folders: of the runs that finished.
        measured: what was found of each of them; the first without measurements ends them while training runs.
        config: of the runs.
        outcome: numbers of all of them.
    """

    name: str
    folders: list[Path]
    measured: list[Measured]
    config: Config
    outcome: Outcome


COLUMNS = [
    Column(
        "bits",
        "bound, bits/dim",
        "The variational bound on held-out images, all of its terms: lower is better. It counts every noise level, so that "
        "a run which did not learn the lowest noise has a high one, however good its samples.",
        "standard error",
    ),
    Column(
        "denoising",
        "bits/dim in range",
        "The part of the continuous-time bound within the noise levels measured: the same integral for every schedule.",
        "standard error",
    ),
    Column(
        "excess",
        "excess, bits/dim",
        "What is left of it above the floor, which no denoiser can go below: lower is better.",
        "standard error",
    ),
    Column("fid", "FID", "Distance of the samples' features to those of real images: lower is better.", "SD between seeds"),
    Column("kid", "KID", "As FID, without its bias for few samples: lower is better.", "SD between seeds"),
    Column(
        "recall", "recall", "Share of real images that are near a sample, in features: higher is better.", "SD between seeds"
    ),
    Column(
        "spectrum",
        "spectra, dB",
        "Mean difference of the power at each wavenumber to that of real fields, in decibels: lower is better, 3 is twice.",
        "SD between seeds",
    ),
    Column(
        "histogram",
        "histograms",
        "Wasserstein-1 distance of the values of a channel to real ones, in their standard deviations: lower is better.",
        "SD between seeds",
    ),
    Column("read", "read", "Share of samples that a classifier reads as some digit with confidence 0.9.", "SD between seeds"),
    Column("fewest", "rarest", "How often the rarest digit is read; 1 is as often as the mean.", "SD between seeds"),
    Column("milliseconds", "ms/step", "Median time of a training step."),
    Column("minutes", "minutes", "Training time, compilation included."),
]
WITH_SE = ("bits", "denoising", "excess")
QUANTITIES = (*(c.key for c in COLUMNS), *(f"{key}_se" for key in WITH_SE))
"""What has a name already, which no penalty can have."""


def collect(
    title: str,
    subtitle: str,
    groups: Sequence[Group],
    penalties: Sequence[str],
    *,
    notes: Sequence[str] = (),
    refresh: int | None,
) -> Contents:
    """The contents of a report on these groups.

    Args:
        title: of the page.
        subtitle: what was measured on what.
        groups: in order.
        penalties: quantities that are penalties of samples.
        notes: sentences about the whole.
        refresh: seconds between reloads; None for a finished report.
    """
    found = [m for g in groups for m in g.measured]
    real = {key: value for m in found for key, value in m.real.items()}
    added = [
        Column(p, p.replace("_", " "), "A penalty, mean over samples.", "SD between seeds", real.get(p, math.nan))
        for p in penalties
    ]
    known = {q for g in groups for q in g.outcome.values}
    columns = [c for c in [*COLUMNS[:9], *added, *COLUMNS[9:]] if c.key in known]
    marks = _marks([g.outcome for g in groups])
    floors, names = _floors(groups)
    entries = [_entry(g, columns, marks, names) for g in groups]
    problems = [f"{g.name}: {p}" for g in groups for p in dict.fromkeys(p for m in g.measured for p in m.problems)]
    times = next((m.times for m in found), [])
    return Contents(
        title,
        subtitle,
        entries,
        columns,
        floors,
        [f"t = {t:.2f}" for t in times],
        [p for p in penalties if p in known],
        quality="fid" if "fid" in known or "spectrum" not in known else "spectrum",
        notes=[*notes, *problems],
        refresh=refresh,
    )


def subtitle(groups: Sequence[Group], how: How) -> str:
    """What was measured on what: the data, the noise levels, the samples."""
    levels = f"noise levels logsnr {how.logsnr[0]:g} to {how.logsnr[-1]:g}"
    data = groups[0].config.data
    return f"data: {data}; up to {how.images} held-out images at {levels}; {how.samples:,} samples each"


def _marks(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Mark]:
    """By (quantity, name)."""
    marks = {}
    for quantity in LOWER_IS_BETTER:
        if (first := best(outcomes, quantity)) is None:
            continue
        for o in outcomes:
            if o is first or o.ties(first, quantity):
                marks[quantity, o.name] = Mark.BEST if o is first else Mark.TIE
    return marks


def _entry(g: Group, columns: Sequence[Column], marks: Mapping[tuple[str, str], Mark], floors: Mapping[str, str]) -> Entry:
    numbers = {}
    for c in columns:
        spread = g.outcome.se(c.key) if c.key in WITH_SE else g.outcome.sd(c.key) if c.spread else math.nan
        numbers[c.key] = Number(g.outcome.mean(c.key), spread, marks.get((c.key, g.name), Mark.NONE))
    failed = [f"seed {seed}: {line}" for seed, line in g.outcome.failed.items()]
    rows = [read_metrics(folder) for folder in g.folders]
    lines = {name: mean_line([m.lines[name] for m in g.measured if name in m.lines]) for name in _LINES}
    return Entry(
        g.name,
        numbers,
        floor=floors.get(g.name),
        loss=mean_line([_thinned(_column(r, "loss")) for r in rows]),
        progress=mean_line([_column(r, "eval/bits_per_dim") for r in rows]),
        samples=_picture(g, "samples.png", "samples of"),
        trajectory=_picture(g, "trajectory.png", "x0_hat on the way to samples of"),
        failed=failed,
        config=as_text(g.config),
        environment=read_environment(g.folders[0]) if g.folders else {},
        **lines,
    )


_LINES = ("x0_error", "weighting", "density", "bound", "bound_levels")


def mean_line(lines: Sequence[Line]) -> Line | None:
    """The mean of lines over the same abscissa, with their standard deviation as spread; the first where they differ.

    A single line keeps its own spread.
    """
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    if len(lines) == 1 or any(line.x != lines[0].x for line in lines):
        return lines[0]
    columns = list(zip(*(line.y for line in lines), strict=True))
    return Line(lines[0].x, [statistics.fmean(c) for c in columns], [statistics.stdev(c) for c in columns])


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Line:
    known = [(float(row["images"]), float(row[key])) for row in rows if row.get(key) is not None]
    return Line([x for x, _ in known], [y for _, y in known])


def _thinned(line: Line, most: int = 200) -> Line:
    """At most so many points, each the mean of its neighbours: a page need not hold every step."""
    size = math.ceil(len(line.x) / most) or 1
    parts = [slice(i, i + size) for i in range(0, len(line.x), size)]
    return Line([line.x[p][-1] for p in parts], [statistics.fmean(line.y[p]) for p in parts])


def _floors(groups: Sequence[Group]) -> tuple[dict[str, Floor], dict[str, str]]:
    """The different floors, and which one is whose: models that are told the label have another."""
    floors: dict[str, Floor] = {}
    names: dict[str, str] = {}
    for g in groups:
        for m in g.measured:
            if "floor_lower" in m.lines:
                name = "floor, given the label" if m.conditional else "floor"
                floors.setdefault(name, Floor(m.lines["floor_lower"], m.lines["floor_upper"]))
                names[g.name] = name
    return floors, names


def _picture(g: Group, name: str, what: str) -> Picture | None:
    path = next((f / FOLDER / name for f in g.folders if (f / FOLDER / name).exists()), None)
    return None if path is None else Picture(read_bytes(path), f"{what} {g.name}")


def as_text(config: Config) -> dict[str, str]:
    """Dotted keys and values; what belongs to one run alone is left out."""
    values = {key: value for key, value in flat(asdict(config)).items() if key not in OWN}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
