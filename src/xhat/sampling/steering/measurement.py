"""A linear measurement y = A x + noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from xhat.budgets import require_at_most
from xhat.errors import DataError
from xhat.registry import PENALTIES
from xhat.sampling.steering.base import Moves, rows_of


@PENALTIES.register
@dataclass(frozen=True)
class Linear:
    """y = A x + noise · standard normal numbers.

    Args:
        operator: A, from images (B, ...) to (B, ...) in differentiable operations: `hide`, `blur`, `shrink`, or your own. One
            that measures nothing of some values of y has a method `measured` that makes them 0.
        value: y, (B, ...), or (1, ...) for all images.
        noise: its standard deviation, 0 or more.

    Raises:
        ValueError: the noise is negative.
    """

    operator: Callable[[Tensor], Tensor]
    value: Tensor
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"noise is a standard deviation, 0 or more, got {self.noise}")

    def rows(self, index: Tensor) -> Self:
        """The measurements of some of the samples."""
        return replace(self, value=rows_of(self.value, index))

    def residual(self, seen: Tensor) -> Tensor:
        """y - seen, where seen is A of some images.

        Raises:
            DataError: they have another shape than y.
        """
        if seen.shape[1:] != self.value.shape[1:] or len(self.value) not in (1, len(seen)):
            raise DataError(
                f"the measurement is {tuple(self.value.shape)}, and the operator makes {tuple(seen.shape)} of the samples: "
                "a measurement has a row for each sample, or one for all"
            )
        measured = getattr(self.operator, "measured", None)  # what is in a value where nothing was measured does not count
        value = self.value.to(seen)
        return (value if measured is None else measured(value)) - seen

    def __call__(self, images: Tensor) -> Tensor:
        """½ ‖y - A x‖²/noise², (B,): the measurement as a penalty; without noise ½ ‖y - A x‖²."""
        apart = self.residual(self.operator(images)).flatten(1).square().sum(1)
        return apart / (2 * (self.noise or 1.0) ** 2)


class Measuring(Moves):
    """A steering towards what was measured, by conjugate gradients; a dataclass of these and more.

    Attributes:
        measurement: y and A.
        iterations: of conjugate gradients, at most.

    Raises:
        ValueError: no iterations, or more than anybody means.
    """

    measurement: Linear
    iterations: int

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"conjugate gradients take 1 iteration or more, got iterations={self.iterations}")
        require_at_most(1000, iterations=self.iterations)

    def rows(self, index: Tensor) -> Self:
        return replace(self, measurement=self.measurement.rows(index))  # type: ignore[type-var]


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], right: Tensor, iterations: int, least: float = 0.0) -> Tensor:
    """x of matrix(x) = right for a positive semidefinite matrix of each sample, (B, ...), after so many iterations at most.

    Hestenes & Stiefel 1952. Of a matrix whose eigenvalues may be smaller than the root of what numbers resolve, times its
    Rayleigh quotient at `right`, as much is added: x stays finite where no x is right. A sample whose residual has vanished in
    rounding stays where it is.

    Args:
        matrix: a function of (B, ...).
        right: (B, ...).
        iterations: at most.
        least: a number that its eigenvalues are not below.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))

    x, rest, ridge = 0 * right, right, 0 * right
    direction, size = rest, dot(rest, rest)
    eps = torch.finfo(right.dtype).eps
    tiny = eps * size
    for iteration in range(iterations):
        ahead = matrix(direction)
        if iteration == 0:
            ridge = eps**0.5 * dot(direction, ahead) / size.clamp(min=torch.finfo(right.dtype).tiny)
            ridge = (ridge - least).clamp(min=0)
        ahead = ahead + ridge * direction
        bent = dot(direction, ahead)
        done = (size <= tiny) | (bent <= 0)
        step = (size / bent.where(~done, bent.new_ones(()))).where(~done, bent.new_zeros(()))
        x, rest = x + step * direction, rest - step * ahead
        after = dot(rest, rest)
        direction = rest + (after / size.where(size > 0, size.new_ones(()))) * direction
        size = after
    return x
