"""Rewards of which nothing but the value is known: the model's own samples are drawn, and the good ones made more likely."""

from xhat.losses.rewards.advantages import Centred, Normalised
from xhat.losses.rewards.contrast import ForwardContrast
from xhat.losses.rewards.likelihoods import BoundLikelihood, Likelihood, StepLikelihood, Trajectory
from xhat.losses.rewards.policy import PolicyGradient

__all__ = [
    "BoundLikelihood",
    "Centred",
    "ForwardContrast",
    "Likelihood",
    "Normalised",
    "PolicyGradient",
    "StepLikelihood",
    "Trajectory",
]
