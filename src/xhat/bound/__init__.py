"""The variational bound: exact, estimated, and the likelihood of the probability-flow ODE."""

from xhat.bound.decoders import DENSITY, DISCRETIZED, SOFTMAX, Decoder
from xhat.bound.exact import Bound, variational_bound

__all__ = ["DENSITY", "DISCRETIZED", "SOFTMAX", "Bound", "Decoder", "variational_bound"]
