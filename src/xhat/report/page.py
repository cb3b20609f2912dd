"""A report as one HTML file that loads nothing: not from the network, not from beside it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any

from xhat.files.ours import GENERATOR, write_ours
from xhat.report.charts import Chart, shows
from xhat.report.contents import Contents
from xhat.report.html import chip, flag, sound, swatch, text
from xhat.report.section import Section
from xhat.report.sections.bound import bound
from xhat.report.sections.differences import differences
from xhat.report.sections.environment import environment
from xhat.report.sections.learned import learned
from xhat.report.sections.levels import levels
from xhat.report.sections.penalties import penalties
from xhat.report.sections.samples import samples
from xhat.report.sections.summary import summary
from xhat.report.sections.training import training
from xhat.report.sections.trajectories import trajectories

SECTIONS = (summary, samples, trajectories, levels, training, learned, bound, penalties, differences, environment)
"""In the order of the page; those with charts stand side by side, below one legend."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
EARLY = """document.documentElement.classList.add("js");
try { document.documentElement.dataset.theme = localStorage.getItem("xhat-theme") || "auto"; } catch { /* the system's */ }"""


def render(contents: Contents) -> str:
    """The page. Equal contents give equal pages.

    Args:
        contents: what it says.
    """
    sections = [found for section in SECTIONS if (found := section(contents)) is not None]
    charts = [chart for section in sections for chart in section.charts]
    nav = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(_group(list(group), contents, charts) for _, group in groupby(sections, lambda s: bool(s.charts)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR}
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


def write_page(contents: Contents, out: Path, *, force: bool = False) -> None:
    """Render and write, so that `out` is the old page or the whole new one; see `write_ours`.

    Raises:
        UsageError: `out` is no page of ours, and there is no `force`.
        OSError: it cannot be written.
    """
    write_ours(out, render(contents).encode(), force=force)


def _group(sections: Sequence[Section], contents: Contents, charts: Sequence[Chart]) -> str:
    """Sections that follow each other, all of them with charts, or all without."""
    html = "".join(section.html for section in sections)
    return f'<div class="charts">{_legend(contents, charts)}{html}</div>' if sections[0].charts else html


def _legend(contents: Contents, charts: Sequence[Chart]) -> str:
    """One for all charts: what it hides is hidden everywhere."""
    drawn = [(i, e) for i, e in enumerate(contents.entries) if any(shows(c, e) for c in charts)]
    chips = [chip(f"entry:{e.name}", f"{swatch(i)}<span>{text(e.name)}</span>") for i, e in drawn]
    line = '<svg class="swatch floor" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true"><path d="M0 6H26"/></svg>'
    floors = contents.floors if any(c.kind == "error" for c in charts) else {}
    chips += [chip(f"floor:{name}", f"{line}<span>{text(name)}</span>") for name in floors]
    every = '<button type="button" data-all="show">All</button><button type="button" data-all="hide">None</button>'
    buttons = f"{''.join(chips)}{every}{flag('zoom', 'Zoom by dragging', True)}"
    without = '<noscript><p class="box warning">The charts need JavaScript; tables and pictures do not.</p></noscript>'
    lead = (
        '<p class="lead js-only">Lines and symbols are the same in all charts; a click on a name hides it in all of them.</p>'
    )
    return f'{without}{lead}<div class="legend js-only" role="group" aria-label="Shown in all charts">{buttons}</div>'


def _refreshing(contents: Contents) -> str:
    if contents.refresh is None:
        return ""
    pause = flag("paused", "Pause", False).replace("<button", '<button class="js-only"')
    return f'<p class="box live" role="status">Training is running: this page refreshes every {contents.refresh} s. {pause}</p>'


def _reload_without_script(contents: Contents) -> str:
    refresh = f'<meta http-equiv="refresh" content="{contents.refresh}">'
    return "" if contents.refresh is None else f"<noscript>{refresh}</noscript>"


def _payload(contents: Contents, charts: Sequence[Chart]) -> str:
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
