"""The summary: entries by quantities, what failed, and what is to be known about the whole."""

from collections.abc import Sequence
from math import isnan

from xhat.report.contents import Column, Contents, Entry, Mark, Number
from xhat.report.html import UNKNOWN, items, number, scrolling, swatch, text
from xhat.report.section import Section

DENSE = 7  # columns, beyond which ± takes a line of its own


def summary(contents: Contents) -> Section | None:
    """A table of what was measured, the best and its ties marked; it is there even if nothing else is."""
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


def _summary_table(contents: Contents) -> str:
    """Entries by quantities, the real images last."""
    head = "".join(f'<th scope="col"><abbr title="{text(c.help)}">{text(c.title)}</abbr></th>' for c in contents.columns)
    compared = len(contents.entries) > 1
    rows = [_entry_row(i, entry, contents.columns, compared) for i, entry in enumerate(contents.entries)]
    foot = ""
    if any(not isnan(c.real) for c in contents.columns):
        cells = "".join("<td></td>" if isnan(c.real) else f"<td>{number(c.real)}</td>" for c in contents.columns)
        foot = f'<tfoot><tr><th scope="row">real images</th>{cells}</tr></tfoot>'
    body = f'<thead><tr><th scope="col">entry</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>{foot}'
    dense = " dense" if len(contents.columns) > DENSE else ""
    return scrolling("summary", f'<table class="numbers{dense}">{body}</table>')


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
        return f"<td>{number(known.value, known.spread)}</td>"
    said = {Mark.BEST: "best", Mark.TIE: "tie with the best"}[known.mark]
    note = f'<span class="mark" title="{said}" aria-hidden="true">{sign}</span><span class="sr">{said}: </span>'
    return f'<td class="{known.mark.value}">{note}{number(known.value, known.spread)}</td>'


def _explained(columns: Sequence[Column]) -> str:
    """What the columns mean, for those who cannot hover over their heads."""
    explained = "".join(f"<dt>{text(c.title)}</dt><dd>{text(c.help)}{_spread(c)}</dd>" for c in columns)
    return f'<details id="columns"><summary>What the columns mean</summary><dl>{explained}</dl></details>'


def _spread(column: Column) -> str:
    return f" ± is {text(column.spread)}." if column.spread else ""


def _troubles(contents: Contents) -> str:
    """What failed, and what is to be known about the whole."""
    failed = [
        f"<li>{swatch(i)} <strong>{text(e.name)}</strong><ul>{items(e.failed)}</ul></li>"
        for i, e in enumerate(contents.entries)
        if e.failed
    ]
    boxes = [
        f'<aside class="box warning" id="failed" aria-label="Failed runs"><h3>Failed</h3><ul>{"".join(failed)}</ul></aside>'
        if failed
        else "",
        f'<aside class="box" aria-label="Notes"><h3>Notes</h3><ul>{items(contents.notes)}</ul></aside>'
        if contents.notes
        else "",
    ]
    return "".join(boxes)
