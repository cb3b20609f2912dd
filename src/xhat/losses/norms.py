"""Norms of an error: (B, ...) -> (B,), with a weight for each of its values where some count more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from xhat.registry import NORMS
from xhat.tensors import image_mean, image_sum, over_images

__all__ = ["Norm", "WeightedNorm", "absolute", "euclidean", "huber", "pseudo_huber", "scheduled_pseudo_huber", "squared"]

Norm = Callable[[Tensor], Tensor]
"""Errors (B, C, H, W) -> one number for each image, (B,)."""


class WeightedNorm(Protocol):
    """A norm that can weigh the values of an error."""

    def __call__(self, error: Tensor, weight: Tensor | None = None) -> Tensor:
        """Of errors (B, ...), whose values count `weight` times, broadcastable to them: one number for each image, (B,)."""
        ...


class TimedNorm(Protocol):
    """A norm that is another at each time."""

    def at(self, t: Tensor) -> WeightedNorm:
        """The norm of samples at times (B,)."""
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


@NORMS.register
@dataclass(frozen=True)
class pseudo_huber:
    """Mean over pixels of 2 delta (sqrt(error² + delta²) - delta): error² near 0, 2 delta |error| far away; weighed as given.

    Args:
        delta: above 0; a number, or one for each image, (B,).

    Raises:
        ValueError: a number that is not above 0.
    """

    delta: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.delta, Tensor) and not self.delta > 0:
            raise ValueError(f"pseudo_huber bends at a delta above 0, got {self.delta}")

    def __call__(self, error: Tensor, weight: Tensor | None = None) -> Tensor:
        delta = over_images(self.delta, error) if isinstance(self.delta, Tensor) else self.delta
        # (sqrt(error² + delta²) - delta) would cancel where the error is small
        each = 2 * delta * error.square() / ((error.square() + delta**2).sqrt() + delta)
        return image_mean(_weighed(each, weight))


@NORMS.register
@dataclass(frozen=True)
class scheduled_pseudo_huber:
    """`pseudo_huber` with delta = lowest^t: squared errors at the data, absolute ones at pure noise.

    Khrapov et al. 2024 (Improving diffusion models's data-corruption resistance using scheduled pseudo-Huber loss), its
    exponential schedule: what corrupted samples change is felt most at high noise, where one of them is as good as any other.

    Args:
        lowest: delta at t = 1, above 0 and at most 1.

    Raises:
        ValueError: any other.
    """

    lowest: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= 1:
            raise ValueError(f"scheduled_pseudo_huber falls from 1 to a delta above 0 and at most 1, got {self.lowest}")

    def at(self, t: Tensor) -> pseudo_huber:
        """The norm at times (B,)."""
        return pseudo_huber(self.lowest**t)


def _weighed(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else weight * values
