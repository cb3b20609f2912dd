"""Time samplers: where on the noise axis the training samples go. They never change what is learned.

Each returns t and its importance, uniform density / own density on the schedule's support, so that the mean of
importance · f(t) estimates the uniform mean of f whatever the sampler. The support is the grid i/T, i = 1..T, of a
discrete schedule, and [t_min, 1] in continuous time.
"""

from xhat.diffusion.times.base import TimeSampler
from xhat.diffusion.times.fixed import LogitNormal, LogNormalSigma, OneLevel, Sequential, Stratified, Uniform
from xhat.diffusion.times.learned import Adaptive, Binned, LossSecondMoment

__all__ = [
    "Adaptive",
    "Binned",
    "LogNormalSigma",
    "LogitNormal",
    "LossSecondMoment",
    "OneLevel",
    "Sequential",
    "Stratified",
    "TimeSampler",
    "Uniform",
]
