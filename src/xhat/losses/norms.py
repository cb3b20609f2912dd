"""Norms of an error: (B, ...) -> (B,), with a weight for each of its values where some count more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from xhat.registry import NORMS
from xhat.tensors import image_mean, image_sum

__all__ = ["Norm", "WeightedNorm", "absolute", "euclidean", "huber", "squared"]

Norm = Callable[[Tensor], Tensor]
"""Errors (B, C, H, W) -> one number for each image, (B,)."""


class WeightedNorm(Protocol):
    """A norm that can weigh the values of an error."""

    def __call__(self, error: Tensor, weight: Tensor | None = None) -> Tensor:
        """Of errors (B, ...), whose values count `weight` times, broadcastable to them: one number for each image, (B,)."""
        ...


@NORMS.register
def squared(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over pixels of weight · error², (B, ...) -> (B,)."""
    if weight is None and not error.is_complex():
        return squared_distance(error, error.new_zeros(()).expand_as(error))
    return image_mean(_weighed(error.square(), weight))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """`squared` of a - b, two (B, ...) -> (B,), in one pass over them each way: a difference and its square take five."""
    return image_mean(nn.functional.mse_loss(a, b, reduction="none"))


@NORMS.register
def absolute(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over pixels of weight · |error|, (B, ...) -> (B,)."""
    return image_mean(_weighed(error.abs(), weight))


@NORMS.register
def euclidean(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """The unsquared norm of each image, the root of the sum of weight · error², (B, ...) -> (B,); its gradient at 0 is 0."""
    if weight is None:
        norm: Tensor = torch.linalg.vector_norm(error.flatten(1), dim=1)
        return norm
    total = image_sum(weight * error.square())
    some = total > 0
    return torch.where(some, torch.where(some, total, torch.ones_like(total)).sqrt(), total)  # the root of 0 has no gradient


@NORMS.register
@dataclass(frozen=True)
class huber:
    """Mean over pixels of Huber's loss: error²/2 up to |error| = delta, delta (|error| - delta/2) beyond; weighed as given."""

    delta: float = 1.0

    def __call__(self, error: Tensor, weight: Tensor | None = None) -> Tensor:
        each = nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)
        return image_mean(_weighed(each, weight))


def _weighed(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else weight * values
