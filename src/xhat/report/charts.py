"""Charts of a report: what the scripts need to know to draw one, and the place where it is drawn."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from xhat.report.contents import Contents, Entry, Line
from xhat.report.html import text

LOGSNR = "logsnr: noise on the left, data on the right"


@dataclass(frozen=True)
class Chart:
    """What series.js and script.js need to know to draw a chart.

    Attributes:
        id: of its elements.
        kind: error (the noise levels with their floors), line (a `Line` of each entry) or points (a penalty and the quality).
        title: of the ordinate, which stands above the chart.
        x: of the abscissa.
        field: of `Entry`, or key of a column.
        log_x: whether the abscissa is logarithmic.
        log: the control that makes the ordinate logarithmic.
        against: key of the column on the ordinate of points.
        real: the abscissa's value on real images.
    """

    id: str
    kind: str
    title: str
    x: str
    field: str
    log: str
    log_x: bool = False
    against: str = ""
    real: float = float("nan")


def shown(charts: Iterable[Chart], contents: Contents) -> list[Chart]:
    """Those that have something to show."""
    return [c for c in charts if any(shows(c, e) for e in contents.entries)]


def shows(chart: Chart, entry: Entry) -> bool:
    """Whether an entry has anything in a chart."""
    if chart.kind == "points":
        return all(key in entry.numbers and isfinite(entry.numbers[key].value) for key in (chart.field, chart.against))
    line: Line | None = getattr(entry, chart.field)
    return line is not None and any(isfinite(y) for y in line.y)


def row(charts: Iterable[Chart]) -> str:
    """Charts side by side."""
    return f'<div class="panels">{"".join(map(figure, charts))}</div>'


def figure(chart: Chart) -> str:
    """The place of a chart, with the same numbers as a table for those who cannot see or hover."""
    return (
        f'<figure class="chart js-only" id="chart-{chart.id}"><figcaption>{text(chart.title)}</figcaption>'
        f'<div class="plot" role="img" aria-label="Chart of {text(chart.title)} by {text(chart.x)}"></div>'
        f'<p class="note" role="status"></p><button type="button" data-reset="{chart.id}">Reset zoom</button>'
        f'<details id="figures-{chart.id}"><summary>Figures</summary></details></figure>'
    )
