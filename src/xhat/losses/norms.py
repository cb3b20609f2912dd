"""Norms of an error: (B, ...) -> (B,)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xhat.registry import NORMS
from xhat.tensors import image_mean

__all__ = ["Norm", "absolute", "euclidean", "huber", "squared"]

Norm = Callable[[Tensor], Tensor]
"""Errors (B, C, H, W) -> one number for each image, (B,)."""


@NORMS.register
def squared(error: Tensor) -> Tensor:
    """Mean over pixels of error², (B, ...) -> (B,)."""
    return image_mean(error.square())


@NORMS.register
def absolute(error: Tensor) -> Tensor:
    """Mean over pixels of |error|, (B, ...) -> (B,)."""
    return image_mean(error.abs())


@NORMS.register
def euclidean(error: Tensor) -> Tensor:
    """The unsquared norm ‖error‖ of each image, (B, ...) -> (B,); its gradient at 0 is 0."""
    norm: Tensor = torch.linalg.vector_norm(error.flatten(1), dim=1)
    return norm


@NORMS.register
@dataclass(frozen=True)
class huber:
    """Mean over pixels of Huber's loss: error²/2 up to |error| = delta, delta (|error| - delta/2) beyond."""

    delta: float = 1.0

    def __call__(self, error: Tensor) -> Tensor:
        return image_mean(nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta))
