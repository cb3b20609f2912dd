"""Where the bits of the variational bound are."""

from xhat.report.charts import LOGSNR, Chart, row, shown
from xhat.report.contents import Contents
from xhat.report.html import controls, flag
from xhat.report.section import Section

STEPS = Chart("bound", "line", "bits/dim per step", "step: data on the left, noise on the right", "bound", "log-steps", True)
LEVELS = Chart("bound_levels", "line", "bits/dim per unit logsnr", LOGSNR, "bound_levels", "log-levels")


def bound(contents: Contents) -> Section | None:
    """Bits by step and by logsnr; None if no bound was measured."""
    charts = shown([STEPS, LEVELS], contents)
    if not charts:
        return None
    lead = "Where the bits of the variational bound are; lower is better. Over logsnr, equal areas are equal bits."
    flags = flag("log-steps", "Logarithmic per step", True) if STEPS in charts else ""
    flags += flag("log-levels", "Logarithmic per unit logsnr", False) if LEVELS in charts else ""
    return Section("bound", "Bound", lead, controls(flags) + row(charts), tuple(charts))
