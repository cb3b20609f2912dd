"""The course of the trainings: raw losses, and the common scale."""

from xhat.report.charts import Chart, shown
from xhat.report.contents import Contents
from xhat.report.section import Section, panels

LOSS = Chart("loss", "line", "raw loss, each on a scale of its own", "images seen", "loss", "log-training")
PROGRESS = Chart("progress", "line", "bits/dim, on the common scale", "images seen", "progress", "log-training")


def training(contents: Contents) -> Section | None:
    """The loss, and the error on held-out images, by images seen; None if neither was logged."""
    charts = shown([LOSS, PROGRESS], contents)
    lead = (
        "Raw losses of different formulations are on different scales and <strong>cannot be compared</strong> with each other: "
        "each says only whether its own run still learns."
    )
    lead += " The common scale measures all of them alike; lower is better." if PROGRESS in charts else ""
    return panels("training", "Training", lead, charts, True)
