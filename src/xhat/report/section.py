"""A section of a report; those that there are stand in `sections`."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from xhat.report.charts import Chart, row
from xhat.report.html import controls, flag


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: of its element; links lead to it.
        title: its heading, and its name in the navigation.
        lead: HTML that says what it is and how to read it.
        body: HTML.
        charts: that the scripts draw in it.
    """

    id: str
    title: str
    lead: str
    body: str
    charts: tuple[Chart, ...] = ()

    @property
    def html(self) -> str:
        """The section, with its heading as its name."""
        heading = f'<h2 id="{self.id}-title">{escape(self.title)}</h2><p class="lead">{self.lead}</p>'
        return f'<section id="{self.id}" aria-labelledby="{self.id}-title">{heading}{self.body}</section>'


def panels(key: str, title: str, lead: str, charts: Sequence[Chart], log: bool) -> Section | None:
    """A section of charts with one control, that makes their ordinates logarithmic; None without charts."""
    body = controls(flag(f"log-{key}", "Logarithmic", log)) + row(charts)
    return Section(key, title, lead, body, tuple(charts)) if charts else None
