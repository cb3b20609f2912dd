"""A report as one HTML file that loads nothing: not from the network, not from beside it."""

import json
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from xhat.files import write_bytes
from xhat.report.contents import Column, Contents, Entry, Line
from xhat.report.tables import Section, differences, environment, samples, sound, summary, swatch, text, trajectories

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
EARLY = """document.documentElement.classList.add("js");
try { document.documentElement.dataset.theme = localStorage.getItem("xhat-theme") || "auto"; } catch { /* the system's */ }"""


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


LOGSNR = "logsnr: noise on the left, data on the right"
ERROR = Chart("error", "error", "error by noise level", LOGSNR, "x0_error", "log-error")
LOSS = Chart("loss", "line", "raw loss, each on a scale of its own", "images seen", "loss", "log-training")
PROGRESS = Chart("progress", "line", "bits/dim, on the common scale", "images seen", "progress", "log-training")
WEIGHTING = Chart("weighting", "line", "effective weighting, largest = 1", LOGSNR, "weighting", "log-learned")
DENSITY = Chart("density", "line", "samples per unit logsnr", LOGSNR, "density", "log-learned")
STEPS = Chart("bound", "line", "bits/dim per step", "step: data on the left, noise on the right", "bound", "log-steps", True)
LEVELS = Chart("bound_levels", "line", "bits/dim per unit logsnr", LOGSNR, "bound_levels", "log-levels")

SPACES = {
    "x0": "clean image x0",
    "noise": "noise: x0 error × SNR",
    "v": "v: x0 error × (1 + SNR)",
    "flow": "flow velocity: x0 error × (1 + √SNR)²",
    "bits": "bits/dim per unit logsnr: x0 error × SNR / (2 ln 2)",
}


def render(contents: Contents) -> str:
    """The page. Equal contents give equal pages.

    Args:
        contents: what it says.
    """
    charts = _charts(contents)
    before = [summary(contents), samples(contents), trajectories(contents)]
    drawn = [section(contents, charts) for section in (_levels, _training, _learned, _bound, _penalties)]
    after = [differences(contents), environment(contents)]
    plots = f'<div class="charts">{_legend(contents, charts)}{"".join(s.html for s in drawn if s)}</div>' if any(drawn) else ""
    known = [s for s in (*before, *drawn, *after) if s]
    nav = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in known)
    body = "".join(s.html for s in before if s) + plots + "".join(s.html for s in after if s)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<title>{text(contents.title)}</title>
<link rel="icon" href="data:,">
<style>{_own("style.css")}</style>
<script>{EARLY}</script>
{_reload_without_script(contents)}
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<div class="top"><h1>{text(contents.title)}</h1>
<button type="button" class="js-only" id="theme" aria-pressed="false">Dark</button></div>
<p class="subtitle">{text(contents.subtitle)}</p>
{_refreshing(contents)}
<nav aria-label="Sections"><ul>{nav}</ul></nav>
</header>
<main id="main" tabindex="-1">{body}</main>
<footer><p>Written by xhat. This file is complete: it loads nothing.</p></footer>
<script type="application/json" id="data">{_payload(contents, charts)}</script>
{f"<script>{_plotly()}</script>" if charts else ""}
<script>{_script()}</script>
</body>
</html>
"""


def write_page(contents: Contents, out: Path) -> None:
    """Render and write, so that `out` is the old page or the whole new one.

    Raises:
        OSError: it cannot be written.
    """
    write_bytes(out, render(contents).encode())


def _levels(contents: Contents, charts: list[Chart]) -> Section | None:
    if ERROR not in charts:
        return None
    options = "".join(
        f'<option value="{key}"{" selected" * (key == "v")}>{escape(title)}</option>' for key, title in SPACES.items()
    )
    excess = _flag("excess", "Excess over the floor", False) if contents.floors else ""
    controls = f'<label>Error of <select id="space" data-select="space">{options}</select></label>{excess}'
    lead = (
        "The same errors on held-out images, in the space you choose: lower is better, at every noise level apart. The space "
    )
    lead += (
        "of v weighs both ends alike, so that all levels can be seen. In bits/dim per unit logsnr, the area under a curve is "
    )
    lead += "what these levels add to the continuous-time bound."
    if contents.floors:
        lead += (
            " The floor is the least error that any denoiser can have, known to lie between its line and the top of its band; "
        )
        lead += "the excess over the line is at most what training could still gain."
    body = _controls(controls + _flag("log-error", "Logarithmic", True)) + _figure(ERROR)
    return Section("levels", "Loss per noise level", lead, body)


def _training(contents: Contents, charts: list[Chart]) -> Section | None:
    lead = (
        "Raw losses of different formulations are on different scales and <strong>cannot be compared</strong> with each other: "
    )
    lead += "each says only whether its own run still learns."
    lead += " The common scale measures all of them alike; lower is better." if PROGRESS in charts else ""
    return _panels("training", "Training", lead, [c for c in (LOSS, PROGRESS) if c in charts], True)


def _learned(contents: Contents, charts: list[Chart]) -> Section | None:
    lead = "The effective weighting says how much each noise level counts, relative to the variational bound, where all count "
    lead += "alike. The density says where the samples go: it changes how noisy the gradient is, not what is learned. "
    lead += "Neither has a good direction."
    return _panels("learned", "What is learned", lead, [c for c in (WEIGHTING, DENSITY) if c in charts], False)


def _bound(contents: Contents, charts: list[Chart]) -> Section | None:
    lead = "Where the bits of the variational bound are; lower is better. Over logsnr, equal areas are equal bits."
    panels = [c for c in (STEPS, LEVELS) if c in charts]
    controls = [_flag("log-steps", "Logarithmic per step", True)] if STEPS in panels else []
    controls += [_flag("log-levels", "Logarithmic per unit logsnr", False)] if LEVELS in panels else []
    return Section("bound", "Bound", lead, _controls("".join(controls)) + _row(panels)) if panels else None


def _penalties(contents: Contents, charts: list[Chart]) -> Section | None:
    panels = [c for c in charts if c.kind == "points"]
    lead = "What a penalty costs in quality: lower is better quality. A penalty below that of real images (dashed) is no gain: "
    lead += "such samples are smoother, flatter or emptier than what they should look like."
    return _panels("penalties", "Penalties against quality", lead, panels, False)


def _charts(contents: Contents) -> list[Chart]:
    """Those that have something to show."""
    columns = {c.key: c for c in contents.columns}
    quality = columns.get(contents.quality)
    pairs = [(columns[key], quality) for key in contents.penalties if quality and key in columns]
    charts = [ERROR, LOSS, PROGRESS, WEIGHTING, DENSITY, STEPS, LEVELS, *(_points(i, x, y) for i, (x, y) in enumerate(pairs))]
    return [c for c in charts if any(_shows(c, e) for e in contents.entries)]


def _points(index: int, x: Column, y: Column) -> Chart:
    return Chart(f"penalty-{index}", "points", y.title, f"{x.title} of samples", x.key, "log-penalties", False, y.key, x.real)


def _shows(chart: Chart, entry: Entry) -> bool:
    if chart.kind == "points":
        return all(key in entry.numbers and isfinite(entry.numbers[key].value) for key in (chart.field, chart.against))
    line: Line | None = getattr(entry, chart.field)
    return line is not None and any(isfinite(y) for y in line.y)


def _legend(contents: Contents, charts: list[Chart]) -> str:
    """One for all charts: what it hides is hidden everywhere."""
    drawn = [(i, e) for i, e in enumerate(contents.entries) if any(_shows(c, e) for c in charts)]
    chips = [_chip(f"entry:{e.name}", f"{swatch(i)}<span>{text(e.name)}</span>") for i, e in drawn]
    line = '<svg class="swatch floor" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true"><path d="M0 6H26"/></svg>'
    chips += [_chip(f"floor:{name}", f"{line}<span>{text(name)}</span>") for name in contents.floors if ERROR in charts]
    every = '<button type="button" data-all="show">All</button><button type="button" data-all="hide">None</button>'
    buttons = f"{''.join(chips)}{every}{_flag('zoom', 'Zoom by dragging', True)}"
    without = '<noscript><p class="box warning">The charts need JavaScript; tables and pictures do not.</p></noscript>'
    lead = (
        '<p class="lead js-only">Lines and symbols are the same in all charts; a click on a name hides it in all of them.</p>'
    )
    return f'{without}{lead}<div class="legend js-only" role="group" aria-label="Shown in all charts">{buttons}</div>'


def _chip(key: str, label: str) -> str:
    return f'<button type="button" class="chip" aria-pressed="true" data-series="{text(key)}">{label}</button>'


def _flag(name: str, label: str, pressed: bool) -> str:
    return f'<button type="button" aria-pressed="{str(pressed).lower()}" data-flag="{name}">{label}</button>'


def _controls(inside: str) -> str:
    return f'<div class="controls js-only">{inside}</div>'


def _panels(key: str, title: str, lead: str, charts: list[Chart], log: bool) -> Section | None:
    body = _controls(_flag(f"log-{key}", "Logarithmic", log)) + _row(charts)
    return Section(key, title, lead, body) if charts else None


def _row(charts: list[Chart]) -> str:
    return f'<div class="panels">{"".join(map(_figure, charts))}</div>'


def _figure(chart: Chart) -> str:
    """The place of a chart, with the same numbers as a table for those who cannot see or hover."""
    return (
        f'<figure class="chart js-only" id="chart-{chart.id}"><figcaption>{text(chart.title)}</figcaption>'
        f'<div class="plot" role="img" aria-label="Chart of {text(chart.title)} by {text(chart.x)}"></div>'
        f'<p class="note" role="status"></p><button type="button" data-reset="{chart.id}">Reset zoom</button>'
        f'<details id="figures-{chart.id}"><summary>Figures</summary></details></figure>'
    )


def _refreshing(contents: Contents) -> str:
    if contents.refresh is None:
        return ""
    pause = _flag("paused", "Pause", False).replace("<button", '<button class="js-only"')
    return f'<p class="box live" role="status">Training is running: this page refreshes every {contents.refresh} s. {pause}</p>'


def _reload_without_script(contents: Contents) -> str:
    refresh = f'<meta http-equiv="refresh" content="{contents.refresh}">'
    return "" if contents.refresh is None else f"<noscript>{refresh}</noscript>"


def _payload(contents: Contents, charts: list[Chart]) -> str:
    """What the charts draw, as JSON that cannot end its own script element."""
    fields = [c.field for c in charts if c.kind != "points"]
    needed = {key for c in charts if c.kind == "points" for key in (c.field, c.against)}
    entries = [
        {
            "name": sound(e.name),
            "floor": e.floor and sound(e.floor),
            "numbers": {key: {"value": n.value, "spread": n.spread} for key, n in e.numbers.items() if key in needed},
            **{field: asdict(line) for field in fields if (line := getattr(e, field)) is not None},
        }
        for e in contents.entries
    ]
    floors = {sound(name): asdict(floor) for name, floor in contents.floors.items()}
    data = {"refresh": contents.refresh, "charts": [asdict(c) for c in charts], "entries": entries, "floors": floors}
    plain = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Numbers to eight digits, which no chart can show more of; null for those that are none."""
    if isinstance(value, float):
        return float(f"{value:.8g}") if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _own(name: str) -> str:
    return files("xhat.report").joinpath(name).read_text("utf-8")


def _script() -> str:
    """Its files as one, with names of their own: those of Plotly are beside them."""
    return f'"use strict";\n(() => {{\n{_own("series.js")}{_own("script.js")}}})();\n'


def _plotly() -> str:
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")
