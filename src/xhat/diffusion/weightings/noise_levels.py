"""Where on the noise axis a penalty of an image counts: weightings of at most 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.gaussians import transition
from xhat.diffusion.schedules import Schedule
from xhat.registry import WEIGHTINGS

__all__ = ["between", "high_snr", "inverse_posterior_variance"]


@WEIGHTINGS.register
@dataclass(frozen=True)
class high_snr:
    """1/(1 + exp(-2 (logsnr - centre))) = SNR²/(SNR² + e^(2 centre)): a soft gate that opens where x0_hat is nearly a sample.

    There p(x0 | z) is narrow: the penalty of its mean is nearly the mean penalty of its samples (Jensen's gap is about half the
    penalty's curvature times the variance of x0 given z, which falls as 1/SNR).
    """

    centre: float = 3.0

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(2 * (logsnr - self.centre))


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
