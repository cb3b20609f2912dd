"""A denoising loss whose noise levels are balanced by a moving average of what they cost."""

import torch
from torch import Tensor

from xhat.budgets import require_at_most
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.weightings import Weighting, constant, density_part, require_weighting
from xhat.losses.denoising import Denoising
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES
from xhat.tensors import PreciseModule, average_in_bins

MOST = 10.0
"""logsnr up to which levels have bins of their own, of either sign; beyond count the last ones."""
TINY, LARGEST = 1e-30, 1e30
"""Means are kept within these, that no weight is infinite."""


@LOSSES.register
class BalancedLevels(PreciseModule, Loss):
    """outer · loss / m(logsnr), (B,), with m the moving average of the loss in a bin of logsnr.

    That every level contributes as `outer` says is also the optimum of `LearnedUncertainty` (Karras et al. 2024, EDM2, eq.
    14-15), which finds m by gradients: here it is averaged, with nothing to train. A bin that no image has been in has the mean
    of the others, and all have 1 before the first step.

    Args:
        loss: that is balanced, its own weighting included.
        outer: weighs the balanced loss, for example from_density(LogNormalSigma(-0.4, 1)).
        decay: of the moving average, per step in which a bin has images.
        bins: between logsnr -10 and 10.
    """

    observes = True
    average: Tensor
    seen: Tensor

    def __init__(self, loss: Denoising, outer: Weighting = constant, decay: float = 0.99, bins: int = 32) -> None:
        super().__init__()
        if not isinstance(loss, Denoising):
            got = type(loss).__name__
            raise ValueError(f"balanced levels are those of a denoising loss, got {got}: give Denoising(space, weighting)")
        if bins < 1:
            raise ValueError(f"an average by noise level needs at least 1 bin, got {bins}")
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average is in [0, 1), got {decay}")
        require_at_most(100_000, bins=bins)
        require_weighting(outer)
        self.loss, self.outer, self.decay, self.bins = loss, outer, decay, bins
        self.register_buffer("average", torch.zeros(bins))
        self.register_buffer("seen", torch.zeros(bins))

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return self.loss.weighted(denoiser, draw, self.weighting)

    def level_means(self, logsnr: Tensor) -> Tensor:
        """m(logsnr), (B,)."""
        known = self.seen > 0
        mean = torch.where(known, self.average / self.seen.clamp(min=TINY), 0)
        others = torch.where(known.any(), mean.sum() / known.sum().clamp(min=1), 1.0)
        means = torch.where(known, mean, others).clamp(min=TINY)
        return means[self._index(logsnr)].to(logsnr.dtype)

    def weighting(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """outer · the loss's own / m, (B,): what the error is multiplied with now."""
        return self.outer(logsnr, schedule) * self.loss.weighting(logsnr, schedule) / self.level_means(logsnr)

    @torch.no_grad()
    def update(self, schedule: Schedule, t: Tensor, value: Tensor) -> None:
        """Take in the values (n,) of a whole global batch at times t (n,); what is 0 or not finite says nothing of a level."""
        logsnr = schedule.logsnr(t)
        loss = (value * self.level_means(logsnr) / self.outer(logsnr, schedule)).abs().double().cpu()
        known = torch.isfinite(loss) & (loss > 0)
        index, loss = self._index(logsnr).cpu()[known], loss[known].clamp(max=LARGEST)
        average_in_bins(self.average, self.seen, index, loss, self.decay)

    def _index(self, logsnr: Tensor) -> Tensor:
        bins = len(self.seen)
        return ((logsnr + MOST) / (2 * MOST) * bins).nan_to_num().clamp(0, bins - 1).long()

    def parts(self) -> tuple[Loss, ...]:
        return (self, *self.loss.parts())

    def density_part(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.loss.density_part(schedule, t) * density_part(self.outer, schedule, t)

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        return self.loss.noise_weight_with(denoiser, logsnr, self.weighting)
