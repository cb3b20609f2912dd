"""The features that samples of a run are compared in."""

from torch import nn

from xhat.config.make import make
from xhat.evaluation.quality import Features
from xhat.registry import FEATURES
from xhat.runs.load import TrainedRun


def features_for(trained: TrainedRun, name: str | None) -> Features | None:
    """The registered ones of this name, by default those that are shipped for the run's data; None if there are none.

    Raises:
        ConfigError: nobody has registered the name.
    """
    if name is None:
        return Features.shipped(trained.shape)
    return Features(make("--features", name, FEATURES, nn.Module).eval().requires_grad_(False), name)
