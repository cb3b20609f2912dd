"""Times that are drawn without being corrected for: their density becomes a part of the objective."""

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times.base import TimeSampler
from xhat.registry import TIMES

__all__ = ["Uncorrected"]


@TIMES.register
class Uncorrected(TimeSampler):
    """Another sampler's times with importance 1: their density weighs the loss, as in the code of EDM, SD3 and InfoNoise.

    Of times that stay as they are, `Denoising(weighting=from_density(...))` with the same times says the same, and stays in the
    loss. Of times that learn, the objective changes as they do; `Objective.effective_weighting` has the density in it.

    Args:
        times: any sampler.
    """

    def __init__(self, times: TimeSampler) -> None:
        super().__init__()
        self.times: TimeSampler = times.times if isinstance(times, Uncorrected) else times
        self.stratified, self.learns = times.stratified, times.learns
        self.learns_noise_error = times.learns_noise_error

    def cdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.times.cdf(schedule, t)

    def icdf(self, schedule: Schedule, u: Tensor) -> Tensor:
        return self.times.icdf(schedule, u)

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.times.density(schedule, t)

    def sample(
        self, schedule: Schedule, n: int, generator: torch.Generator | None = None, *, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        t, importance = self.times.sample(schedule, n, generator, step=step)
        return t, torch.ones_like(importance)

    def update(self, schedule: Schedule, t: Tensor, loss: Tensor) -> None:
        self.times.update(schedule, t, loss)

    def unmet(self, schedule: Schedule, steps: int) -> str | None:
        return self.times.unmet(schedule, steps)

    def relative_density(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.times.relative_density(schedule, t)

    def allocation(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.times.relative_density(schedule, t)
