"""The denoising loss: weight(logsnr) · norm(y - y_hat), y in any space."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.targets import NOISE, Target
from xhat.diffusion.weightings import LearnedUncertainty, ScheduleWeighting, Weighting, constant, on_schedule, space_of
from xhat.objective.terms import Draw, Loss
from xhat.registry import LOSSES, NORMS
from xhat.tensors import image_mean

Norm = Callable[[Tensor], Tensor]


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


@LOSSES.register
class Denoising(Loss):
    """weight(logsnr(t)) · norm(y - y_hat), with y = a x0 + b noise in `space`, whatever the network itself predicts.

    The prediction is moved into the space by the linear map of `targets.decode`; no clamp. Mean over pixels, (B,).

    Args:
        space: in which the error is measured.
        weight: function of logsnr, or a weighting that needs the schedule (`elbo`, `sigmoid(b)`, `from_density(...)`).
            It multiplies as it stands; one that is written for another space is warned about, see `weightings.moved`.
        norm: squared, absolute, huber(d) or euclidean.
    """

    def __init__(self, space: Target = NOISE, weight: Weighting | ScheduleWeighting = constant, norm: Norm = squared) -> None:
        super().__init__()
        if not isinstance(space, Target):
            raise TypeError(f"space must be a target such as X0 or V, got {space!r}")
        written_for = space_of(weight)
        if written_for is not None and written_for.name != space.name:
            warnings.warn(
                f"{type(weight).__name__} is written for the {written_for.name} loss, this one is in {space.name} space: "
                f"use space={written_for.name.upper()}, or weightings.moved(weight, {written_for.name.upper()}, space)",
                stacklevel=2,
            )
        self.space, self.weight, self.norm = space, weight, norm

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        schedule = denoiser.schedule
        error = draw.prediction.within(self.space) - self.space.of(schedule, draw.t, draw.x0, draw.noise)
        loss: Tensor = self.norm(error)
        if self.weight == constant:
            return loss
        loss = on_schedule(self.weight, schedule)(schedule.logsnr(draw.t)) * loss
        return loss + self.offset(denoiser, draw) if isinstance(self.weight, LearnedUncertainty) else loss

    def offset(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        if not isinstance(self.weight, LearnedUncertainty):
            return super().offset(denoiser, draw)
        schedule = denoiser.schedule
        return self.weight.offset_on(schedule)(schedule.logsnr(draw.t))

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        if self.norm is not squared:
            return None
        schedule = denoiser.schedule
        # gain takes the error from x0 to the space; exp(logsnr) takes it from x0 to noise
        factor = self.space.gain_at(schedule, logsnr) * torch.exp(-logsnr)
        return on_schedule(self.weight, schedule)(logsnr) * factor
