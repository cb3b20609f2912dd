"""The sections of a report that need no JavaScript: tables and pictures; and how its texts and numbers are written."""

import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, isinf, isnan, log10

from xhat.report.contents import Column, Contents, Entry, Mark, Number, Picture

FEW = 3  # pictures that have room for twice their size
DENSE = 7  # columns of the summary, beyond which ± takes a line of its own
TIME = "t = "  # before what stands above a column of a trajectory
COLORS = 7  # --c0 to --c6 of style.css; entries beyond take the next dash pattern and open symbols
DASHES = ("", "6 3", "2 3")
UNKNOWN = '<span class="unknown" aria-hidden="true">–</span><span class="sr">not known</span>'
SYMBOLS = (  # those of Plotly, in the order of `SYMBOLS` in script.js
    "M13 2.5a3.5 3.5 0 1 0 .01 0z",  # circle
    "M10 3h6v6h-6z",  # square
    "M13 1.5 17.5 6 13 10.5 8.5 6z",  # diamond
    "M13 2 17 9H9z",  # triangle-up
    "M13 10 9 3H17z",  # triangle-down
    "M11.7 2h2.6v2.7H17v2.6h-2.7V10h-2.6V7.3H9V4.7h2.7z",  # cross
    "M13 1.5l1.3 3 3.2.2-2.5 2 .8 3.2L13 8.2l-2.8 1.7.8-3.2-2.5-2 3.2-.2z",  # star
)


@dataclass(frozen=True)
class Section:
    """A part of the page; its lead says what it is and how to read it."""

    id: str
    title: str
    lead: str
    body: str

    @property
    def html(self) -> str:
        """The section, with its heading as its name."""
        heading = f'<h2 id="{self.id}-title">{escape(self.title)}</h2><p class="lead">{self.lead}</p>'
        return f'<section id="{self.id}" aria-labelledby="{self.id}-title">{heading}{self.body}</section>'


def summary(contents: Contents) -> Section | None:
    if not contents.entries:
        return Section("summary", "Summary", "There is nothing to compare yet.", _troubles(contents))
    alone = len(contents.entries) == 1
    lead = "What was measured." if alone else "One row for each entry, with the line and symbol it has in every chart."
    if contents.columns and not alone:
        lead += ' <span class="mark">★</span> marks the best of a column, <span class="mark">=</span> what cannot be told from '
        lead += "the best."
    if any(isnan(_value_of(e, c)) for e in contents.entries for c in contents.columns):
        lead += " – is not known."
    return Section(
        "summary",
        "Summary",
        lead,
        _summary_table(contents) + (_explained(contents.columns) if contents.columns else "") + _troubles(contents),
    )


def samples(contents: Contents) -> Section | None:
    figures = [
        f"<figure>{_image(e.samples)}<figcaption>{swatch(i)} {text(e.name)}</figcaption></figure>"
        for i, e in enumerate(contents.entries)
        if e.samples
    ]
    lead = "All entries start from the same noise, so that images in the same place can be compared one by one."
    lead = lead if len(figures) > 1 else "Images that the model draws from noise."
    return Section("samples", "Samples", lead, _pictures("samples", figures)) if figures else None


def trajectories(contents: Contents) -> Section | None:
    captions = contents.trajectory_times
    times = all(caption.startswith(TIME) for caption in captions)
    columns = "".join(f"<span>{text(caption.removeprefix(TIME) if times else caption)}</span>" for caption in captions)
    above = f'<div class="times">{columns}</div>' if captions else ""
    figures = [
        f"<figure><figcaption>{swatch(i)} {text(e.name)}</figcaption>"
        f'<div class="scroll" role="region" tabindex="0" aria-label="trajectory of {text(e.name)}">'
        f'<div class="film" style="--n:{max(len(captions), 1)}">{above}{_image(e.trajectory)}</div></div></figure>'
        for i, e in enumerate(contents.entries)
        if e.trajectory
    ]
    if not figures:
        return None
    lead = (
        "What the network takes for the clean image along a sampling chain, from noise on the left to the sample on the right."
    )
    lead += " Above each column stands its time t." if captions and times else ""
    lead += " All entries start from the same noise; one that decides early shows its last image early." * (len(figures) > 1)
    return Section("trajectories", "Denoising trajectories", lead, _pictures("trajectories", figures))


def differences(contents: Contents) -> Section | None:
    known = [(i, e.name, e.config) for i, e in enumerate(contents.entries) if e.config]
    if not known:
        return None
    keys, common = _shared([config for *_, config in known])
    if len(contents.entries) == 1:
        listed = _common_table("config", common)
        listed = f'<details id="common"><summary>All {len(common)} keys</summary>{listed}</details>'
        return Section("differs", "Config", "The configuration of the run.", listed)
    table = _by_entry("config keys that differ", keys, known) if keys else "<p>Nothing in the configs differs.</p>"
    rest = _common_table("common config", common)
    body = f'{table}<details id="common"><summary>The config that all share ({len(common)} keys)</summary>{rest}</details>'
    return Section("differs", "What differs", "The configuration of the runs: first what differs, then what all share.", body)


def environment(contents: Contents) -> Section | None:
    known = [(i, e.name, e.environment) for i, e in enumerate(contents.entries) if e.environment]
    if not known:
        return None
    keys, common = _shared([values for *_, values in known])
    body = _by_entry("environment that differs", keys, known) if keys else ""
    body += _common_table("environment", common) if common else ""
    lead = f"What the run{'s were' if len(known) > 1 else ' was'} trained on." + (
        " First what differs, then what all share." if keys and common else ""
    )
    return Section("environment", "Environment", lead, body)


def sound(raw: str) -> str:
    """What a run said without what breaks a file: control characters, and the lone surrogates of undecodable file names."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in raw.encode("utf-8", "replace").decode())


def text(raw: str) -> str:
    """What a run said, as HTML: nothing in it is markup."""
    return escape(sound(raw))


def _number(value: float, spread: float = float("nan")) -> str:
    """The value to the precision that its spread supports, or to four digits."""
    if isinf(value):
        return "∞" if value > 0 else "−∞"
    if isnan(value):
        return UNKNOWN
    if isfinite(spread) and spread > 0:
        digits = 1 - floor(log10(float(f"{spread:.1e}")))  # 0.0996 is 0.10
        if -4 < digits <= 6 and abs(value) < 1e7:
            places = max(digits, 0)
            return f"{_signed(f'{value:,.{places}f}')} <small>± {spread:,.{places}f}</small>"
        return f"{_signed(f'{value:.4g}')} <small>± {spread:.2g}</small>"
    if float(value).is_integer() and abs(value) < 1e12:
        return _signed(f"{value:,.0f}")
    return _signed(f"{value:,.{max(0, 3 - floor(log10(abs(value))))}f}" if 1e-3 <= abs(value) < 1e6 else f"{value:.4g}")


def _signed(plain: str) -> str:
    return plain.replace("-", "−", 1) if plain.startswith("-") else plain


def swatch(index: int) -> str:
    """The line and symbol of an entry, as in every chart. Decoration: the name stands beside it."""
    turn = index // COLORS
    dash = f' stroke-dasharray="{DASHES[turn % len(DASHES)]}"' if turn else ""
    fill = "var(--bg)" if turn % 2 else "currentColor"
    return (
        f'<svg class="swatch" style="color:var(--c{index % COLORS})" viewBox="0 0 26 12" width="26" height="12" '
        f'aria-hidden="true"><path d="M0 6H26" stroke="currentColor" stroke-width="2"{dash}/>'
        f'<path d="{SYMBOLS[index % len(SYMBOLS)]}" fill="{fill}" stroke="currentColor"/></svg>'
    )


def _pictures(name: str, figures: Sequence[str]) -> str:
    few = " few" if len(figures) <= FEW else ""
    return f'<div class="{name}{few}">{"".join(figures)}</div>'


def _scrolling(label: str, table: str) -> str:
    """A table that scrolls within itself: the page never does sideways."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _summary_table(contents: Contents) -> str:
    """Entries by quantities, the real images last."""
    head = "".join(f'<th scope="col"><abbr title="{text(c.help)}">{text(c.title)}</abbr></th>' for c in contents.columns)
    compared = len(contents.entries) > 1
    rows = [_entry_row(i, entry, contents.columns, compared) for i, entry in enumerate(contents.entries)]
    foot = ""
    if any(not isnan(c.real) for c in contents.columns):
        cells = "".join("<td></td>" if isnan(c.real) else f"<td>{_number(c.real)}</td>" for c in contents.columns)
        foot = f'<tfoot><tr><th scope="row">real images</th>{cells}</tr></tfoot>'
    body = f'<thead><tr><th scope="col">entry</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>{foot}'
    dense = " dense" if len(contents.columns) > DENSE else ""
    return _scrolling("summary", f'<table class="numbers{dense}">{body}</table>')


def _value_of(entry: Entry, column: Column) -> float:
    return entry.numbers[column.key].value if column.key in entry.numbers else float("nan")


def _entry_row(index: int, entry: Entry, columns: Sequence[Column], compared: bool) -> str:
    failed = ' <a class="badge" href="#failed">failed</a>' if entry.failed else ""
    cells = "".join(_cell(entry.numbers.get(c.key), compared) for c in columns)
    return f'<tr><th scope="row">{swatch(index)} {text(entry.name)}{failed}</th>{cells}</tr>'


def _cell(known: Number | None, compared: bool) -> str:
    if known is None:
        return f"<td>{UNKNOWN}</td>"
    sign = {Mark.BEST: "★", Mark.TIE: "="}.get(known.mark)
    if sign is None or not compared:  # one alone is no best
        return f"<td>{_number(known.value, known.spread)}</td>"
    said = {Mark.BEST: "best", Mark.TIE: "tie with the best"}[known.mark]
    note = f'<span class="mark" title="{said}" aria-hidden="true">{sign}</span><span class="sr">{said}: </span>'
    return f'<td class="{known.mark.value}">{note}{_number(known.value, known.spread)}</td>'


def _explained(columns: Sequence[Column]) -> str:
    """What the columns mean, for those who cannot hover over their heads."""
    items = "".join(f"<dt>{text(c.title)}</dt><dd>{text(c.help)}{_spread(c)}</dd>" for c in columns)
    return f'<details id="columns"><summary>What the columns mean</summary><dl>{items}</dl></details>'


def _spread(column: Column) -> str:
    return f" ± is {text(column.spread)}." if column.spread else ""


def _troubles(contents: Contents) -> str:
    """What failed, and what is to be known about the whole."""
    failed = [
        f"<li>{swatch(i)} <strong>{text(e.name)}</strong><ul>{_items(e.failed)}</ul></li>"
        for i, e in enumerate(contents.entries)
        if e.failed
    ]
    boxes = [
        f'<aside class="box warning" id="failed" aria-label="Failed runs"><h3>Failed</h3><ul>{"".join(failed)}</ul></aside>'
        if failed
        else "",
        f'<aside class="box" aria-label="Notes"><h3>Notes</h3><ul>{_items(contents.notes)}</ul></aside>'
        if contents.notes
        else "",
    ]
    return "".join(boxes)


def _items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{text(s)}</li>" for s in sentences)


def _by_entry(label: str, keys: Sequence[str], entries: Sequence[tuple[int, str, Mapping[str, str]]]) -> str:
    """Keys by entries (place among all, name, values as text)."""
    head = "".join(f'<th scope="col">{swatch(i)} {text(name)}</th>' for i, name, _ in entries)
    rows = "".join(
        f'<tr><th scope="row">{_breakable(key)}</th>{"".join(_value(values.get(key)) for *_, values in entries)}</tr>'
        for key in keys
    )
    return _scrolling(label, f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>")


def _common_table(label: str, values: Mapping[str, str]) -> str:
    """Keys and the value that all entries share."""
    rows = "".join(f'<tr><th scope="row">{_breakable(key)}</th>{_value(value)}</tr>' for key, value in values.items())
    return _scrolling(label, f"<table><tbody>{rows}</tbody></table>")


def _breakable(raw: str) -> str:
    """Names and expressions of a config, which have no spaces to break lines at; no HTML entity holds any of these signs."""
    return "".join(f"{c}<wbr>" if c in ".(=_/" else c for c in text(raw))


def _value(value: str | None) -> str:
    return f"<td>{UNKNOWN if value is None else _breakable(value)}</td>"


def _shared(texts: Sequence[Mapping[str, str]]) -> tuple[list[str], dict[str, str]]:
    """The keys in which mappings differ, and what all of them share; in the order in which keys first appear."""
    keys = list(dict.fromkeys(key for values in texts for key in values))
    differing = [key for key in keys if len({values.get(key) for values in texts}) > 1]
    return differing, {key: texts[0][key] for key in keys if key not in differing}


def _image(picture: Picture) -> str:
    """The PNG within the page, at its own size, so that nothing moves when it is decoded."""
    width, height = struct.unpack(">II", picture.png[16:24])  # of the IHDR chunk, which is always first
    source = f"data:image/png;base64,{b64encode(picture.png).decode()}"
    size = f'width="{width}" height="{height}" style="--own:{width}px"'
    return f'<img src="{source}" alt="{text(picture.alt)}" {size} decoding="async">'
