"""Where on the noise axis a penalty of the created image counts: weightings in logsnr, (B,) -> (B,), at most 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.gaussians import transition
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.weightings import Weighting
from xhat.registry import WEIGHTINGS


@dataclass(frozen=True)
class HighSNR:
    """See `high_snr`."""

    centre: float

    def __call__(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(2 * (logsnr - self.centre))


@WEIGHTINGS.register
def high_snr(centre: float = 3.0) -> Weighting:
    """1/(1 + exp(-2 (logsnr - centre))) = SNR²/(SNR² + e^(2 centre)): a soft gate that opens where x0_hat is nearly a sample.

    There p(x0 | z) is narrow: the penalty of its mean is nearly the mean penalty of its samples (Jensen's gap is about half the
    penalty's curvature times the variance of x0 given z, which falls as 1/SNR).
    """
    return HighSNR(centre)


@dataclass(frozen=True)
class Between:
    """See `between`."""

    low: float
    high: float

    def __call__(self, logsnr: Tensor) -> Tensor:
        return ((logsnr >= self.low) & (logsnr <= self.high)).to(logsnr.dtype)


@WEIGHTINGS.register
def between(low: float, high: float) -> Weighting:
    """1 at noise levels low <= logsnr <= high, 0 elsewhere."""
    if not low < high:
        raise ValueError(f"between(low, high) needs low < high in logsnr, got {low}, {high}")
    return Between(low, high)


@dataclass(frozen=True)
class InversePosteriorVariance:
    """See `inverse_posterior_variance`."""

    steps: int

    def on(self, schedule: Schedule) -> Weighting:
        """The function of logsnr for this schedule."""
        step = 1 / (schedule.steps or self.steps)

        def precision(t: Tensor) -> Tensor:
            t = t.clamp(min=2 * step)
            return 1 / transition(schedule, t, t - step).posterior_variance

        def weight(logsnr: Tensor) -> Tensor:
            t = schedule.t_of(logsnr.to(torch.float64))
            largest = precision(torch.full((1,), 2 * step, dtype=torch.float64, device=logsnr.device))
            return (precision(t) / largest).detach().to(logsnr.dtype)

        return weight


@WEIGHTINGS.register
def inverse_posterior_variance(steps: int = 1000) -> InversePosteriorVariance:
    """1/beta-tilde(t), largest = 1: a residual that is Gaussian with the reverse step's own variance.

    Bastek et al. 2024 (Physics-informed diffusion models), eq. 9, where the residual's variance is beta-tilde_t / c; c is the
    term's weight here. beta-tilde of the last step is 0; as usual that of the step before takes its place.

    Args:
        steps: T in continuous time, with steps from t to t - 1/T.
    """
    if steps < 2:
        raise ValueError(f"inverse_posterior_variance needs 2 steps or more, got {steps}")
    return InversePosteriorVariance(steps)
