"""The network of features that samples are compared in."""

from torch import nn

from xhat.config.make import make
from xhat.data.shape import DataShape
from xhat.evaluation.quality import Features
from xhat.registry import FEATURES


def features_for(shape: DataShape, name: str | None) -> Features | None:
    """The registered ones of this name, by default those that are shipped for such data; None if there are none.

    Raises:
        ConfigError: nobody has registered the name.
    """
    if name is None:
        return Features.shipped(shape)
    return Features(make("features", name, FEATURES, nn.Module).eval().requires_grad_(False), name)
