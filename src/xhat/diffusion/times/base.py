"""What a time sampler is."""

from abc import abstractmethod

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.tensors import PreciseModule

_BELOW_ONE = 1 - 2**-24  # the float32 before 1, where unbounded densities vanish
_EDGE = 1e-12  # quantiles stay this far from 0 and 1, where unbounded distributions have their infinities


class TimeSampler(PreciseModule):
    """Draws times by the inverse of the distribution function `cdf`, stratified over the whole batch of n.

    Subclasses give cdf and icdf on [0, 1] and the density; the base class restricts them to the support of the schedule it
    is bound to (`Objective` binds it), and turns densities into cell probabilities on a grid.
    """

    stratified = True

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["schedule"] = None  # not a submodule: the denoiser owns it

    schedule: Schedule | None

    def bind(self, schedule: Schedule) -> None:
        """Fix the schedule whose support the times are drawn from.

        Raises:
            ValueError: it is bound to another schedule.
        """
        if self.schedule is not None and self.schedule is not schedule:
            raise ValueError("this time sampler already serves another schedule: make a new one")
        self.__dict__["schedule"] = schedule

    @abstractmethod
    def cdf(self, t: Tensor) -> Tensor:
        """Distribution function on [0, 1], float64."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """Its inverse, float64."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """Its derivative, float64."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n times (n,) and their importances (n,), float32, on the CPU."""
        return self._at(self._quantiles(n, generator))

    def sample_at(self, step: int, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """As `sample`, for training step number `step`; what `Objective` calls. Only `Sequential` looks at the step."""
        return self.sample(n, generator)

    def _at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times and importances (n,), float32, of quantiles u (n,), float64."""
        if self.schedule is not None and self.schedule.steps is not None:
            cell = self._cells()
            index = torch.searchsorted(cell.cumsum(0), u * cell.sum()).clamp(max=cell.numel() - 1)
            t = (index + 1) / self.schedule.steps
        else:
            low, high = self._ends()
            t = self.icdf(low + (high - low) * u).clamp(self._t_min, _BELOW_ONE)
        t = t.float()
        return t, (1 / self.relative_density(t)).float()

    def relative_density(self, t: Tensor) -> Tensor:
        """Density (or cell probability) at t over that of uniform times on the same support; the same dtype as t."""
        wide = t.detach().to(torch.float64).cpu()
        if self.schedule is not None and self.schedule.steps is not None:
            cell = self._cells()
            index = (wide * cell.numel()).round().long().clamp(1, cell.numel())
            ratio = cell[index - 1] / cell.mean()
        else:
            low, high = self._ends()
            # where the densities of unbounded distributions vanish, at t = 0 and 1, their formulas are 0/0
            ratio = self.density(wide).nan_to_num(nan=0.0) * (1 - self._t_min) / (high - low)
        return ratio.to(t.device, t.dtype)

    def _quantiles(self, n: int, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        if self.stratified:
            # one sample in each of n equal strata; shuffled, so that no part of a batch has a level of its own
            u = (torch.randperm(n, generator=generator) + u) / n
        return u.clamp(_EDGE, 1 - _EDGE)

    @property
    def _t_min(self) -> float:
        return self.schedule.t_min if self.schedule is not None else 0.0

    def _ends(self) -> tuple[Tensor, Tensor]:
        low, high = self.cdf(torch.tensor([self._t_min, 1.0], dtype=torch.float64))
        return low, high

    def _cells(self) -> Tensor:
        """Probability of each grid point i = 1..T, up to a constant: the mass of ((i-1)/T, i/T]."""
        assert self.schedule is not None
        assert self.schedule.steps is not None
        grid = torch.arange(self.schedule.steps + 1, dtype=torch.float64) / self.schedule.steps
        return self.cdf(grid).diff()
