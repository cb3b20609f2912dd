"""Densities of time that stay as they are."""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times.base import TimeSampler
from xhat.registry import TIMES

__all__ = ["LogNormalSigma", "LogitNormal", "OneLevel", "Sequential", "Stratified", "Uniform"]


@functools.lru_cache(maxsize=16)
def _equal_cells(steps: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Running sums of the differences of i/T: an array, for a tensor that is made in a mode of torch may be none outside."""
    return np.cumsum(np.diff(np.arange(steps + 1, dtype=np.float64) / steps))


@TIMES.register
class Stratified(TimeSampler):
    """Uniform times, one in each of n equal strata: the lowest variance of all uniform draws (cf. VDM, appendix I.1)."""

    def cdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return t

    def icdf(self, schedule: Schedule, u: Tensor) -> Tensor:
        return u

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def relative_density(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)  # on any support

    def _ends(self, schedule: Schedule) -> tuple[Tensor | float, Tensor | float]:
        return (schedule.t_min, 1.0) if self._is_uniform else super()._ends(schedule)

    def _cumulative(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        if not (self._is_uniform and schedule.steps):
            return super()._cumulative(schedule)
        cumulative = torch.from_numpy(_equal_cells(schedule.steps))
        return cumulative, cumulative[-1]

    @property
    def _is_uniform(self) -> bool:
        """Whether a subclass has left the distribution as it is here, so that nothing of it need be computed."""
        return type(self).cdf is Stratified.cdf


@TIMES.register
class Uniform(Stratified):
    """Independent uniform times (DDPM, algorithm 1)."""

    stratified = False


@TIMES.register
class OneLevel(Uniform):
    """One uniform time for the whole global batch: each image's gradient is DDPM's, but nothing averages over noise levels."""

    def _quantiles(self, n: int, generator: torch.Generator | None) -> Tensor:
        return super()._quantiles(1, generator).expand(n)


@TIMES.register
class Sequential(Stratified):
    """The whole batch of step n is at the level that follows that of step n - 1, from data to noise: `for t in range(T)`.

    On a grid of T steps t = i/T, i = (n mod T) + 1; in continuous time the midpoints of equal strata of [t_min, 1] in turn.
    Over a cycle the density is uniform, so that the importance is 1; but neighbouring steps see nearly the same level, and
    the optimizer's averages follow it.

    Args:
        levels: length of the cycle in continuous time; a discrete schedule's is its number of steps.
    """

    def __init__(self, levels: int = 1000) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"sequential times need at least 1 level, got {levels}")
        self.levels = levels

    def sample(
        self, schedule: Schedule, n: int, generator: torch.Generator | None = None, *, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        """n equal times (n,), a function of the step alone, and importances of 1 (n,)."""
        cycle = self._cycle(schedule)
        return self._at(schedule, torch.full((n,), (step % cycle + 0.5) / cycle, dtype=torch.float64))

    def unmet(self, schedule: Schedule, steps: int) -> str | None:
        cycle = self._cycle(schedule)
        return (
            None
            if steps >= cycle
            else f"has been at {steps} of {cycle} levels, those with the least noise: train longer, or choose others"
        )

    def _cycle(self, schedule: Schedule) -> int:
        return schedule.steps or self.levels


@TIMES.register
class LogitNormal(TimeSampler):
    """t = sigmoid(loc + scale N(0, 1)) (Esser et al. 2024, SD3, eq. 19)."""

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        _require_positive(scale)
        self.loc, self.scale = loc, scale

    def _normal(self, t: Tensor) -> Tensor:
        return (torch.logit(t) - self.loc) / self.scale

    def cdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return _normal_cdf(self._normal(t))

    def icdf(self, schedule: Schedule, u: Tensor) -> Tensor:
        return torch.sigmoid(self.loc + self.scale * torch.special.ndtri(u))

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        return _normal_density(self._normal(t)) / (self.scale * t * (1 - t))


@TIMES.register
class LogNormalSigma(TimeSampler):
    """ln(sigma/alpha) ~ N(mean, std²) (Karras et al. 2022, EDM, table 1), mapped to t by the schedule."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        _require_positive(std)
        self.mean, self.std = mean, std

    def _normal(self, schedule: Schedule, t: Tensor) -> Tensor:
        return (-schedule.logsnr(t.to(schedule.device)).detach().cpu() / 2 - self.mean) / self.std

    def cdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return _normal_cdf(self._normal(schedule, t))

    def icdf(self, schedule: Schedule, u: Tensor) -> Tensor:
        logsnr = -2 * (self.mean + self.std * torch.special.ndtri(u))
        return schedule.t_of(logsnr.to(schedule.device)).detach().cpu()

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        slope = -schedule.dlogsnr(t.to(schedule.device)).detach().cpu() / 2
        return _normal_density(self._normal(schedule, t)) / self.std * slope


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _normal_cdf(x: Tensor) -> Tensor:
    cdf: Tensor = torch.special.ndtr(x)
    return cdf


def _require_positive(scale: float) -> None:
    if scale <= 0:
        raise ValueError(f"the scale of a time sampler must be positive, got {scale}")
