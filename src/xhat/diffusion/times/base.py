"""What a time sampler is."""

from abc import abstractmethod

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.tensors import PreciseModule

__all__ = ["TimeSampler"]

_BELOW_ONE = 1 - 2**-24  # the float32 before 1, where unbounded densities vanish
_EDGE = 1e-12  # quantiles stay this far from 0 and 1, where unbounded distributions have their infinities


class TimeSampler(PreciseModule):
    """Draws times by the inverse of the distribution function `cdf`, stratified over the whole batch of n.

    Subclasses give cdf and icdf on [0, 1] and the density, all of (schedule, t); the base class restricts them to the support
    of the schedule, and turns densities into cell probabilities on a grid. A sampler belongs to no schedule.

    Attributes:
        stratified: whether the n times of a batch are spread over n equal strata.
        learns: whether `update` does something: then the objective gathers the losses of the whole global batch for it.
        learns_noise_error: whether it is given ‖noise - noise_hat‖², a mean over pixels, in place of the weighted losses.
    """

    stratified: bool = True
    learns: bool = False
    learns_noise_error: bool = False

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def cdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Distribution function on [0, 1], float64."""

    @abstractmethod
    def icdf(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Its inverse, float64."""

    @abstractmethod
    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Its derivative, float64."""

    def sample(
        self, schedule: Schedule, n: int, generator: torch.Generator | None = None, *, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        """n times (n,) and their importances (n,), float32, on the CPU.

        Args:
            schedule: whose times they are.
            n: samples of the whole global batch.
            generator: of the draw.
            step: number of the training step; only `Sequential` looks at it.
        """
        return self._at(schedule, self._quantiles(n, generator))

    def update(self, schedule: Schedule, t: Tensor, loss: Tensor) -> None:
        """Take in the weighted losses (n,) of images at times t (n,), of the whole global batch, after each training step."""

    def unmet(self, schedule: Schedule, steps: int) -> str | None:
        """What has not come about by the end of a training of so many steps, a predicate; None is nothing."""
        return None

    def allocation(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight that being drawn at t gives in the objective: 1, as importances correct for it; see `Uncorrected`."""
        return torch.ones_like(t)

    def relative_density(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Density (or cell probability) at t over that of uniform times on the same support; the same dtype as t."""
        wide = t.detach().to(torch.float64).cpu()
        if schedule.steps is not None:
            cell = self._cells(schedule)
            index = (wide * cell.numel()).round().long().clamp(1, cell.numel())
            ratio = cell[index - 1] / cell.mean()
        else:
            low, high = self._ends(schedule)
            # where the densities of unbounded distributions vanish, at t = 0 and 1, their formulas are 0/0
            ratio = self.density(schedule, wide).nan_to_num(nan=0.0) * (1 - schedule.t_min) / (high - low)
        return ratio.to(t.device, t.dtype)

    def _at(self, schedule: Schedule, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times and importances (n,), float32, of quantiles u (n,), float64."""
        if schedule.steps is not None:
            cumulative, total = self._cumulative(schedule)
            index = torch.searchsorted(cumulative, u * total).clamp(max=schedule.steps - 1)
            t = (index + 1) / schedule.steps
        else:
            low, high = self._ends(schedule)
            whole = isinstance(low, float) and (low, high) == (0.0, 1.0)
            t = self.icdf(schedule, u if whole else low + (high - low) * u).clamp(schedule.t_min, _BELOW_ONE)
        t = t.float()
        return t, self.relative_density(schedule, t).reciprocal().float()

    def _quantiles(self, n: int, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        if self.stratified:
            # one sample in each of n equal strata; shuffled, so that no part of a batch has a level of its own
            u = (torch.randperm(n, generator=generator) + u) / n
        return u.clamp(_EDGE, 1 - _EDGE)

    def _ends(self, schedule: Schedule) -> tuple[Tensor | float, Tensor | float]:
        """The distribution function at the ends of the support."""
        low, high = self.cdf(schedule, torch.tensor([schedule.t_min, 1.0], dtype=torch.float64))
        return low, high

    def _cumulative(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """The running sums of the cells (T,), and their sum ()."""
        cell = self._cells(schedule)
        return cell.cumsum(0), cell.sum()

    def _cells(self, schedule: Schedule) -> Tensor:
        """Probability of each grid point i = 1..T, up to a constant: the mass of ((i-1)/T, i/T]."""
        assert schedule.steps is not None
        grid = torch.arange(schedule.steps + 1, dtype=torch.float64) / schedule.steps
        return self.cdf(schedule, grid).diff()
