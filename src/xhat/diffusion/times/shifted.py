"""Times for images of another resolution than those that they were found on."""

import math

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times.base import TimeSampler
from xhat.diffusion.times.uncorrected import Uncorrected
from xhat.registry import TIMES

__all__ = ["Shifted"]


@TIMES.register
class Shifted(TimeSampler):
    """Another sampler's times at 2 ln(ratio) less logsnr: neighbouring pixels of a larger image say more of each other.

    Noise that hides as much of an image of `ratio` times the side has a standard deviation `ratio` times as large (Hoogeboom et
    al. 2023, Simple diffusion, eq. 4). On `Flow` it is SD3's t' = ratio t/(1 + (ratio - 1) t) (Esser et al. 2024, eq. 23). The
    schedule stays what it is; `Flow(shift=ratio)` moves its noise levels themselves, those of sampling too.

    Args:
        times: of the resolution that they were found at; one that does not learn.
        ratio: the side of the images over that one.

    Raises:
        ValueError: a ratio that is not above 0, times that learn, or that are not corrected for.
    """

    def __init__(self, times: TimeSampler, ratio: float) -> None:
        super().__init__()
        if not ratio > 0:
            raise ValueError(f"times are shifted by a ratio of sides above 0, got {ratio}")
        if times.learns:
            raise ValueError(f"{type(times).__name__} finds its times itself: leave the shift out")
        if isinstance(times, Uncorrected):
            raise ValueError(f"shift the times first: Uncorrected(Shifted({type(times.times).__name__}(...), {ratio:g}))")
        self.times, self.ratio = times, ratio
        self.stratified = times.stratified

    def cdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.times.cdf(schedule, self._moved(schedule, t, 1).clamp(0, 1))

    def icdf(self, schedule: Schedule, u: Tensor) -> Tensor:
        return self._moved(schedule, self.times.icdf(schedule, u), -1)

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        before = self._moved(schedule, t, 1)
        inside = (before > 0) & (before < 1)  # where the shift leads beyond an end of the schedule, no times are
        safe = before.where(inside, before.new_tensor(0.5))
        slope = schedule.dlogsnr(t.to(schedule.device)) / schedule.dlogsnr(safe.to(schedule.device))
        found = self.times.density(schedule, safe) * slope.detach().cpu()
        return found.where(inside, torch.zeros_like(found))

    def _moved(self, schedule: Schedule, t: Tensor, sign: int) -> Tensor:
        """The time whose logsnr is larger by 2 ln(ratio), or smaller."""
        logsnr = schedule.logsnr(t.to(schedule.device)) + sign * 2 * math.log(self.ratio)
        return schedule.t_of(logsnr).detach().cpu()
