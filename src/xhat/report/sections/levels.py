"""The error at each noise level, in the space that the reader chooses, with the floor."""

from html import escape

from xhat.report.charts import LOGSNR, Chart, figure, shown
from xhat.report.contents import Contents
from xhat.report.html import controls, flag
from xhat.report.section import Section

ERROR = Chart("error", "error", "error by noise level", LOGSNR, "x0_error", "log-error")
SPACES = {
    "x0": "clean image x0",
    "noise": "noise: x0 error × SNR",
    "v": "v: x0 error × (1 + SNR)",
    "flow": "flow velocity: x0 error × (1 + √SNR)²",
    "bits": "bits/dim per unit logsnr: x0 error × SNR / (2 ln 2)",
}


LEAD = (
    "The same errors on held-out images, in the space you choose: lower is better, at every noise level apart. The space "
    "of v weighs both ends alike, so that all levels can be seen. In bits/dim per unit logsnr, the area under a curve is "
    "what these levels add to the continuous-time bound."
)
OF_FLOOR = (
    " The floor is the least error that any denoiser can have, known to lie between its line and the top of its band; "
    "the excess over the line is at most what training could still gain."
)


def levels(contents: Contents) -> Section | None:
    """One chart, whose space and scale the reader chooses; None if no errors were measured."""
    if not shown([ERROR], contents):
        return None
    lead = LEAD + (OF_FLOOR if contents.floors else "")
    excess = flag("excess", "Excess over the floor", False) if contents.floors else ""
    body = controls(_space() + excess + flag("log-error", "Logarithmic", True)) + figure(ERROR)
    return Section("levels", "Loss per noise level", lead, body, (ERROR,))


def _space() -> str:
    """The choice of the space."""
    options = "".join(
        f'<option value="{key}"{" selected" * (key == "v")}>{escape(title)}</option>' for key, title in SPACES.items()
    )
    return f'<label>Error of <select id="space" data-select="space">{options}</select></label>'
