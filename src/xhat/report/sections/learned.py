"""How much each noise level counts, and how often it is drawn."""

from xhat.report.charts import LOGSNR, Chart, shown
from xhat.report.contents import Contents
from xhat.report.section import Section, panels

WEIGHTING = Chart("weighting", "line", "effective weighting, largest = 1", LOGSNR, "weighting", "log-learned")
DENSITY = Chart("density", "line", "samples per unit logsnr", LOGSNR, "density", "log-learned")


def learned(contents: Contents) -> Section | None:
    """The effective weighting and the density of the samples by logsnr; None if no objective was profiled."""
    lead = "The effective weighting says how much each noise level counts, relative to the variational bound, where all count "
    lead += "alike. The density of the timestep sampling distribution changes how noisy the gradient is, not the objective. "
    lead += "Neither has a good direction."
    return panels("learned", "Loss weighting", lead, shown([WEIGHTING, DENSITY], contents), False)
