"""Where on the noise axis a penalty of an image counts: weightings of at most 1."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from xhat.diffusion.gaussians import transition
from xhat.diffusion.schedules import Schedule
from xhat.registry import WEIGHTINGS

__all__ = ["between", "high_snr", "high_snr_latents", "inverse_posterior_variance"]


@dataclass(frozen=True)
class _OpenAbove:
    centre: float | None = None

    typical: ClassVar[tuple[float, int]]
    """A centre, and the side of the images that it is right for."""

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(2 * (logsnr - (self.typical[0] if self.centre is None else self.centre)))

    def of_size(self, sample: tuple[int, ...]) -> Self:
        """With the centre that is right for images of this shape, unless one was chosen."""
        if self.centre is not None or len(sample) != 3:
            return self
        centre, side = self.typical
        return replace(self, centre=centre - math.log(sample[1] * sample[2] / side**2))


@WEIGHTINGS.register
class high_snr(_OpenAbove):
    """1/(1 + exp(-2 (logsnr - centre))) = SNR²/(SNR² + e^(2 centre)): a soft gate that opens where x0_hat is nearly a sample.

    There p(x0 | z) is narrow: the penalty of its mean is nearly the mean penalty of its samples (Jensen's gap is about half the
    penalty's curvature times the variance of x0 given z, which falls as 1/SNR).

    Args:
        centre: where it is half open. By default 3 - 2 ln(side/28) in an image loss, which knows the images: 3 was found at
            28 x 28, and the mean of n x n pixels that say the same is as sure at n² times the noise (the shift of Hoogeboom
            et al. 2023, simple diffusion). At 256 x 256 that is -1.4.
    """

    typical = (3.0, 28)


@WEIGHTINGS.register
class high_snr_latents(_OpenAbove):
    """As `high_snr`, for latents of an autoencoder, whose neighbours say less of each other than pixels do.

    Args:
        centre: where it is half open. By default 1.1 - 2 ln(side/128) in an image loss: 1.1 is the gate of Berrada et al.
            (2025) on 128 x 128 latents of SDXL.
    """

    typical = (1.1, 128)


@WEIGHTINGS.register
@dataclass(frozen=True)
class between:
    """1 at noise levels low <= logsnr <= high, 0 elsewhere."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"between(low, high) needs low < high in logsnr, got {self.low}, {self.high}")

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return ((logsnr >= self.low) & (logsnr <= self.high)).to(logsnr.dtype)


@WEIGHTINGS.register
@dataclass(frozen=True)
class inverse_posterior_variance:
    """1/beta-tilde(t), largest = 1: a residual that is Gaussian with the reverse step's own variance.

    Bastek et al. 2024 (Physics-informed diffusion models), eq. 9, where the residual's variance is beta-tilde_t / c; c is the
    term's weight here. beta-tilde of the last step is 0; as usual that of the step before takes its place.

    Args:
        steps: T in continuous time, with steps from t to t - 1/T.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"inverse_posterior_variance needs 2 steps or more, got {self.steps}")

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        step = 1 / (schedule.steps or self.steps)
        largest = _precision(schedule, torch.full((1,), 2 * step, dtype=torch.float64, device=logsnr.device), step)
        t = schedule.t_of(logsnr.to(torch.float64))
        return (_precision(schedule, t, step) / largest).detach().to(logsnr.dtype)


def _precision(schedule: Schedule, t: Tensor, step: float) -> Tensor:
    """1/beta-tilde of the step from t to t - step, at least that of the second step above the data."""
    t = t.clamp(min=2 * step)
    return 1 / transition(schedule, t, t - step).posterior_variance
