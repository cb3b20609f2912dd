"""What a report says, before it is a page."""

from dataclasses import dataclass, field
from enum import Enum
from math import nan

SECONDS = 10
"""Between two versions of the page of a training that is watched."""


class Mark(Enum):
    """How a number stands among those of its column."""

    NONE = ""
    BEST = "best"
    TIE = "tie"


@dataclass(frozen=True)
class Number:
    """A value ± spread; NaN where it is not known.

    Attributes:
        value: what was measured.
        spread: its standard error, or the standard deviation between seeds: the column says which.
        mark: best of its column, or not to be told from the best.
    """

    value: float
    spread: float = nan
    mark: Mark = Mark.NONE


@dataclass(frozen=True)
class Column:
    """A quantity of the summary.

    Attributes:
        key: in `Entry.numbers`.
        title: short, with the unit.
        help: one sentence on what it is.
        spread: what ± stands for; "" without one.
        real: its value on real images, where it has one.
    """

    key: str
    title: str
    help: str
    spread: str = ""
    real: float = nan


@dataclass(frozen=True)
class Line:
    """Points of a curve.

    Attributes:
        x: abscissa.
        y: ordinate; NaN leaves a gap.
        spread: half-width of ± at each point, or empty.
    """

    x: list[float]
    y: list[float]
    spread: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows, for those who do not see it."""

    png: bytes
    alt: str


@dataclass(frozen=True)
class Entry:
    """One name in every table and chart: a run, or a change of a study over its seeds. What is missing is None or empty.

    Attributes:
        name: as the reader knows it.
        numbers: by the key of a column.
        x0_error: mean (x0 - x0_hat)² per pixel on held-out images, by logsnr.
        floor: name of the floor that belongs to it, in `Contents.floors`.
        loss: the raw training loss by images seen.
        progress: bits/dim within the noise levels of x0_error, measured during training, by images seen.
        weighting: effective weighting relative to the bound, by logsnr, largest = 1.
        density: of the timestep sampling distribution, per unit logsnr, by logsnr.
        bound: bits/dim per step of the variational bound, by step.
        bound_levels: the same per unit logsnr, by logsnr.
        samples: drawn from the same noise for all entries.
        trajectory: x0_hat at times of a sampling chain, from the same noise for all entries.
        failed: what the runs that failed said, one line each.
        config: dotted key -> value as text.
        environment: name -> value as text: what it was trained on.
    """

    name: str
    numbers: dict[str, Number] = field(default_factory=dict)
    x0_error: Line | None = None
    floor: str | None = None
    loss: Line | None = None
    progress: Line | None = None
    weighting: Line | None = None
    density: Line | None = None
    bound: Line | None = None
    bound_levels: Line | None = None
    samples: Picture | None = None
    trajectory: Picture | None = None
    failed: list[str] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Floor:
    """The least error of x0 that any denoiser can have, by logsnr; it lies between `lower` and `upper`.

    Attributes:
        lower: with its standard error.
        upper: with its standard error.
    """

    lower: Line
    upper: Line


@dataclass(frozen=True)
class Contents:
    """All of a report.

    Attributes:
        title: of the page.
        subtitle: what was compared, on which data, how many images were measured.
        entries: in the order of the reader.
        columns: of the summary.
        floors: name -> floor of x0_error.
        trajectory_times: captions of the columns of each trajectory picture.
        penalties: keys of the columns that are penalties of samples.
        quality: key of the column that penalties are drawn against.
        notes: sentences about the whole: what could not be measured, what failed.
        refresh: seconds between reloads while training runs; None for a finished report.
    """

    title: str
    subtitle: str
    entries: list[Entry]
    columns: list[Column]
    floors: dict[str, Floor] = field(default_factory=dict)
    trajectory_times: list[str] = field(default_factory=list)
    penalties: list[str] = field(default_factory=list)
    quality: str = "fid"
    notes: list[str] = field(default_factory=list)
    refresh: int | None = None
