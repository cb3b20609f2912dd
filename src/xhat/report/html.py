"""How the texts, numbers, swatches, tables, pictures and controls of a report are written as HTML."""

import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import floor, isfinite, isinf, isnan, log10

from xhat.report.contents import Picture

FEW = 3  # pictures that have room for twice their size
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


def sound(raw: str) -> str:
    """What a run said without what breaks a file: control characters, and the lone surrogates of undecodable file names."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in raw.encode("utf-8", "replace").decode())


def text(raw: str) -> str:
    """What a run said, as HTML: nothing in it is markup."""
    return escape(sound(raw))


def number(value: float, spread: float = float("nan")) -> str:
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


def pictures(name: str, figures: Sequence[str]) -> str:
    """Figures side by side, of class `name`; a few are shown larger."""
    few = " few" if len(figures) <= FEW else ""
    return f'<div class="{name}{few}">{"".join(figures)}</div>'


def image(picture: Picture) -> str:
    """The PNG within the page, at its own size, so that nothing moves when it is decoded."""
    width, height = struct.unpack(">II", picture.png[16:24])  # of the IHDR chunk, which is always first
    source = f"data:image/png;base64,{b64encode(picture.png).decode()}"
    size = f'width="{width}" height="{height}" style="--own:{width}px"'
    return f'<img src="{source}" alt="{text(picture.alt)}" {size} decoding="async">'


def scrolling(label: str, table: str) -> str:
    """A table that scrolls within itself: the page never does sideways."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def items(sentences: Iterable[str]) -> str:
    """The items of a list."""
    return "".join(f"<li>{text(s)}</li>" for s in sentences)


def by_entry(label: str, keys: Sequence[str], entries: Sequence[tuple[int, str, Mapping[str, str]]]) -> str:
    """Keys by entries (place among all, name, values as text)."""
    head = "".join(f'<th scope="col">{swatch(i)} {text(name)}</th>' for i, name, _ in entries)
    rows = "".join(
        f'<tr><th scope="row">{_breakable(key)}</th>{"".join(_value(values.get(key)) for *_, values in entries)}</tr>'
        for key in keys
    )
    return scrolling(label, f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>")


def common_table(label: str, values: Mapping[str, str]) -> str:
    """Keys and the value that all entries share."""
    rows = "".join(f'<tr><th scope="row">{_breakable(key)}</th>{_value(value)}</tr>' for key, value in values.items())
    return scrolling(label, f"<table><tbody>{rows}</tbody></table>")


def _breakable(raw: str) -> str:
    """Names and expressions of a config, which have no spaces to break lines at; no HTML entity holds any of these signs."""
    return "".join(f"{c}<wbr>" if c in ".(=_/" else c for c in text(raw))


def _value(value: str | None) -> str:
    return f"<td>{UNKNOWN if value is None else _breakable(value)}</td>"


def shared(texts: Sequence[Mapping[str, str]]) -> tuple[list[str], dict[str, str]]:
    """The keys in which mappings differ, and what all of them share; in the order in which keys first appear."""
    keys = list(dict.fromkeys(key for values in texts for key in values))
    differing = [key for key in keys if len({values.get(key) for values in texts}) > 1]
    return differing, {key: texts[0][key] for key in keys if key not in differing}


def chip(key: str, label: str) -> str:
    """A button that hides a series in all charts; `label` is HTML."""
    return f'<button type="button" class="chip" aria-pressed="true" data-series="{text(key)}">{label}</button>'


def flag(name: str, label: str, pressed: bool) -> str:
    """A button that is pressed or not, which the scripts know by its name."""
    return f'<button type="button" aria-pressed="{str(pressed).lower()}" data-flag="{name}">{label}</button>'


def controls(inside: str) -> str:
    """A row of controls, which is nothing without JavaScript."""
    return f'<div class="controls js-only">{inside}</div>'
