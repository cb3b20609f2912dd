"""How far a mean of few values may be off: Student's limits."""

import math

from torch import Tensor

NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""

FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Those of Student's t for 1, 2, ... degrees of freedom."""


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: how many standard errors a 95 % interval reaches to each side.

    Above ten degrees of freedom by its expansion in 1/freedom (Abramowitz & Stegun 1964, 26.7.5), right to 1e-3.
    """
    if freedom < 1:
        return math.inf  # one value says nothing of its own error
    if freedom <= len(FEW):
        return FEW[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def limits(mean: float, standard_error: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a mean of `count` values; ±2 standard errors would hold 75 % of the time at 2, 88 % at 5."""
    reach = student(count - 1) * standard_error
    return mean - reach, mean + reach


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values (n,); inf for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.inf


def images_needed(first_stage: Tensor, wanted: float) -> int:
    """How many values to average for a standard error, from the spread of others (m,), which are not averaged themselves.

    n = (s t/z / wanted)², t/z being Student's quantile over the normal one, as s may be too small by chance (Stein 1945, with a
    first stage of its own). Nothing of what is averaged decides when to stop: whoever stops when the error looks small stops
    where rare large values are missing, and reports a mean that is too small with an error that is too small.
    """
    spread = float(first_stage.std()) * student(len(first_stage) - 1) / NORMAL
    return max(2, math.ceil((spread / wanted) ** 2))
