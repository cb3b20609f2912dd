"""Diffusion posterior sampling: each step is followed by one down the penalty of x0_hat, differentiated through the network."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Conditioned, Prediction
from xhat.registry import PENALTIES, STEERINGS
from xhat.sampling.samplers import Sampler, State
from xhat.sampling.steering.base import Steered, Steering, penalty_of


@STEERINGS.register
@dataclass(frozen=True)
class DPS(Steering):
    """z_s - scale · the gradient of penalty(x0_hat(z_t)) with respect to z_t (Chung et al. 2023, algorithm 1).

    Their steps for a measurement, scale/‖y - A x0_hat‖ long, are those of a penalty that is the norm itself: `root(penalty)`.

    Args:
        penalty: (B, ...) -> (B,), of clean images.
        scale: of its gradient.
    """

    penalty: Callable[[Tensor], Tensor]
    scale: float = 1.0

    def rows(self, index: Tensor) -> Self:
        return replace(self, penalty=penalty_of(self.penalty, index))

    def around(self, sampler: Sampler) -> Sampler:
        return _Descending(sampler, self)


@PENALTIES.register
@dataclass(frozen=True)
class root:
    """sqrt(penalty), whose gradient has the length that a distance's has; 0, with a gradient of 0, where the penalty is 0."""

    penalty: Callable[[Tensor], Tensor]

    def rows(self, index: Tensor) -> Self:
        """The penalty of some of the samples."""
        return replace(self, penalty=penalty_of(self.penalty, index))

    def __call__(self, images: Tensor) -> Tensor:
        value = self.penalty(images)
        some = value > 0
        return torch.where(some, torch.where(some, value, torch.ones_like(value)).sqrt(), 0 * value)


@dataclass(frozen=True)
class _Descending(Steered):
    steering: DPS

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        with torch.enable_grad():
            at, seen = z.detach().requires_grad_(), _First(model.denoiser, model.cond, model)
            ahead, after = self.sampler.step(seen, at, t, s, noise, state)
            (slope,) = torch.autograd.grad(self.steering.penalty(seen.predictions[0].x0).sum(), at)
        return (ahead - self.steering.scale * slope).detach(), tuple(x.detach() for x in after)


@dataclass(frozen=True)
class _First(Conditioned):
    """A model that remembers what it said."""

    own: Conditioned | None = None
    predictions: list[Prediction] = field(default_factory=list)

    def __call__(self, z: Tensor, t: Tensor, *, checkpoint: bool = False) -> Prediction:
        assert self.own is not None
        self.predictions.append(self.own(z, t, checkpoint=checkpoint))
        return self.predictions[-1]
