"""What each penalty of the samples costs in quality."""

from xhat.report.charts import Chart, shown
from xhat.report.contents import Column, Contents
from xhat.report.section import Section, panels


def penalties(contents: Contents) -> Section | None:
    """A chart for each penalty; None if none was measured together with the quality."""
    lead = "What a penalty costs in quality: lower is better quality. A penalty below that of real images (dashed) is no gain: "
    lead += "such samples are smoother, flatter or emptier than what they should look like."
    return panels("penalties", "Penalties against quality", lead, shown(_charts(contents), contents), False)


def _charts(contents: Contents) -> list[Chart]:
    """Each penalty and the quality; none of them without the other."""
    columns = {c.key: c for c in contents.columns}
    quality = columns.get(contents.quality)
    pairs = [(columns[key], quality) for key in contents.penalties if quality and key in columns]
    return [_points(i, x, y) for i, (x, y) in enumerate(pairs)]


def _points(index: int, x: Column, y: Column) -> Chart:
    return Chart(f"penalty-{index}", "points", y.title, f"{x.title} of samples", x.key, "log-penalties", False, y.key, x.real)
