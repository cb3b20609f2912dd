"""The variational bound: exact, estimated, and the likelihood of the probability-flow ODE."""

from xhat.bound.decoders import DENSITY, DISCRETIZED, GAUSSIAN, SOFTMAX, Decoder
from xhat.bound.estimate import BoundEstimate, estimate_bound
from xhat.bound.exact import Bound, variational_bound
from xhat.bound.ode import OdeLikelihood, ode_likelihood

__all__ = [
    "DENSITY",
    "DISCRETIZED",
    "GAUSSIAN",
    "SOFTMAX",
    "Bound",
    "BoundEstimate",
    "Decoder",
    "OdeLikelihood",
    "estimate_bound",
    "ode_likelihood",
    "variational_bound",
]
