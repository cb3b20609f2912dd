"""How gradients pass through a chain of sampling steps: through none, some or all of them, or through a cheaper surrogate."""

from xhat.sampling.differentiate.base import Differentiation, require
from xhat.sampling.differentiate.leaps import Bridge, Lagrange, LeapAlign
from xhat.sampling.differentiate.steps import AllSteps, Last, LowVariance, NoSteps, RandomLast, Reversible
from xhat.sampling.differentiate.surrogates import DRTune, ReFL, Surrogate

__all__ = [
    "AllSteps",
    "Bridge",
    "Differentiation",
    "DRTune",
    "Lagrange",
    "Last",
    "LeapAlign",
    "LowVariance",
    "NoSteps",
    "RandomLast",
    "ReFL",
    "require",
    "Reversible",
    "Surrogate",
]
