"""A density of time that follows what noisy images tell of clean ones."""

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times.learned import Adaptive
from xhat.registry import TIMES

__all__ = ["InfoNoise"]

NOISIEST = -20.0
"""logsnr below which nothing is told of an image: some schedules go to minus infinity."""


@TIMES.register
class InfoNoise(Adaptive):
    """p(t) ∝ ½ E‖noise - noise_hat‖² (-d logsnr/dt), the rate at which an image is decided (Raya et al. 2026, InfoNoise).

    By I-MMSE (Guo et al. 2005) it is -dH(x0 | z_t)/dt for the best denoiser; for that stands the network's own error, a moving
    average in each bin. With importance weights, as all samplers here, the objective stays what it is; the paper draws without
    them, so that its density becomes a weighting: that is `Uncorrected(InfoNoise())`.

    Where images are nearly clean, all that is left of the noise is unknown, and the rate per unit of logsnr never falls: the
    paper damps these levels, here those above `finest` have the uniform share alone.

    Args:
        decay: of the moving average, per update.
        uniform: share of uniform draws.
        bins: number of bins in continuous time.
        finest: logsnr; 10 is noise of a 1.7th of an 8-bit level.
    """

    learns_noise_error = True

    def __init__(self, decay: float = 0.99, uniform: float = 0.05, bins: int = 128, finest: float = 10.0) -> None:
        super().__init__(decay, uniform, bins)
        if not finest > NOISIEST:
            raise ValueError(f"the finest level that counts is a logsnr above {NOISIEST:g}, got {finest}")
        self.finest = finest

    def update(self, schedule: Schedule, t: Tensor, loss: Tensor) -> None:
        """Take in the errors of the noise (n,), means over pixels, of images at times t (n,)."""
        wide = t.detach().to(schedule.device, torch.float64)
        super().update(schedule, t, loss.to(wide) * self._rate(schedule, wide))

    def _rate(self, schedule: Schedule, t: Tensor) -> Tensor:
        """How fast logsnr falls at t (n,), among the levels that count; on a grid, from the step before."""
        with torch.no_grad():
            if schedule.steps is None:
                logsnr = schedule.logsnr(t)
                inside = (logsnr > NOISIEST) & (logsnr <= self.finest)
                return torch.where(inside, -schedule.dlogsnr(t), 0.0)
            before = (t - 1 / schedule.steps).clamp(min=0)
            first, last = (schedule.logsnr(x).clamp(NOISIEST, self.finest) for x in (before, t))
            return (first - last) * schedule.steps
