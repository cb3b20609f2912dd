"""Time samplers: where on the noise axis the training samples go. They never change what is learned.

Each returns t and its importance, uniform density / own density on the schedule's support, so that the mean of
importance · f(t) estimates the uniform mean of f whatever the sampler. The support is the grid i/T, i = 1..T, of a
discrete schedule, and [t_min, 1] in continuous time.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from xhat.precise import PreciseModule
from xhat.schedules import Schedule

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
        u = self._quantiles(n, generator)
        if self.schedule is not None and self.schedule.steps is not None:
            cell = self._cells()
            index = torch.searchsorted(cell.cumsum(0), u * cell.sum()).clamp(max=cell.numel() - 1)
            t = (index + 1) / self.schedule.steps
        else:
            low, high = self._ends()
            t = self.icdf(low + (high - low) * u).clamp(self._t_min, 1.0)
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


class Stratified(TimeSampler):
    """Uniform times, one in each of n equal strata: the lowest variance of all uniform draws (cf. VDM, appendix I.1)."""

    def cdf(self, t: Tensor) -> Tensor:
        return t

    def icdf(self, u: Tensor) -> Tensor:
        return u

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Uniform(Stratified):
    """Independent uniform times (DDPM, algorithm 1)."""

    stratified = False


class LogitNormal(TimeSampler):
    """t = sigmoid(loc + scale N(0, 1)) (Esser et al. 2024, SD3, eq. 19)."""

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        _require_positive(scale)
        self.loc, self.scale = loc, scale

    def _normal(self, t: Tensor) -> Tensor:
        return (torch.logit(t) - self.loc) / self.scale

    def cdf(self, t: Tensor) -> Tensor:
        return _normal_cdf(self._normal(t))

    def icdf(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.loc + self.scale * torch.special.ndtri(u))

    def density(self, t: Tensor) -> Tensor:
        return _normal_density(self._normal(t)) / (self.scale * t * (1 - t))


class LogNormalSigma(TimeSampler):
    """ln(sigma/alpha) ~ N(mean, std²) (Karras et al. 2022, EDM, table 1), mapped to t by the schedule."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        _require_positive(std)
        self.mean, self.std = mean, std

    def _known(self) -> Schedule:
        if self.schedule is None:
            raise ValueError("LogNormalSigma draws noise levels: bind(schedule) turns them into times")
        return self.schedule

    def _normal(self, t: Tensor) -> Tensor:
        schedule = self._known()
        return (-schedule.logsnr(t.to(schedule.device)).detach().cpu() / 2 - self.mean) / self.std

    def cdf(self, t: Tensor) -> Tensor:
        return _normal_cdf(self._normal(t))

    def icdf(self, u: Tensor) -> Tensor:
        schedule = self._known()
        logsnr = -2 * (self.mean + self.std * torch.special.ndtri(u))
        return schedule.t_of(logsnr.to(schedule.device)).detach().cpu()

    def density(self, t: Tensor) -> Tensor:
        schedule = self._known()
        slope = -schedule.dlogsnr(t.to(schedule.device)).detach().cpu() / 2
        return _normal_density(self._normal(t)) / self.std * slope


class Binned(TimeSampler):
    """A piecewise constant density over equal bins of the support, learned from the losses seen.

    Args:
        uniform: share of uniform draws mixed in, so that no bin starves.
        bins: number of bins in continuous time; a discrete schedule has one per step.
    """

    def __init__(self, uniform: float, bins: int) -> None:
        super().__init__()
        if not 0 < uniform <= 1:
            raise ValueError(f"the uniform share must be in (0, 1], got {uniform}")
        self.uniform, self.bins = uniform, bins

    @abstractmethod
    def _make_history(self, bins: int) -> None:
        """Register buffers for so many bins."""

    @abstractmethod
    def _learned(self) -> Tensor | None:
        """Unnormalized probabilities (bins,), float64; None while too little is known."""

    @abstractmethod
    def _learn(self, index: Tensor, loss: Tensor) -> None:
        """Take in losses (n,) of the bins index (n,)."""

    def bind(self, schedule: Schedule) -> None:
        first = self.schedule is None
        super().bind(schedule)
        if first:
            self.bins = schedule.steps or self.bins
            self._make_history(self.bins)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Take in the weighted per-image losses (n,) seen at times t (n,), of the whole global batch; NaN is left out."""
        t, loss = t.detach().to(torch.float64).cpu(), loss.detach().to(torch.float64).cpu()
        known = torch.isfinite(loss)
        self._learn(self._index(t[known]), loss[known])

    def _index(self, t: Tensor) -> Tensor:
        if self.schedule is not None and self.schedule.steps is not None:
            return ((t * self.bins).round().long() - 1).clamp(0, self.bins - 1)
        return ((t - self._t_min) / (1 - self._t_min) * self.bins).long().clamp(0, self.bins - 1)

    def _probabilities(self) -> Tensor:
        learned = self._learned() if self.schedule is not None else None
        if learned is None or not bool(learned.sum() > 0):
            return torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        return (1 - self.uniform) * learned / learned.sum() + self.uniform / self.bins

    def _cells(self) -> Tensor:
        return self._probabilities()

    def _ends(self) -> tuple[Tensor, Tensor]:
        return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def cdf(self, t: Tensor) -> Tensor:
        p = self._probabilities()
        x = ((t - self._t_min) / (1 - self._t_min) * self.bins).clamp(0, self.bins)
        left = x.long().clamp(max=self.bins - 1)
        return p.cumsum(0)[left] - p[left] * (1 - (x - left))

    def icdf(self, u: Tensor) -> Tensor:
        p = self._probabilities()
        cumulative = p.cumsum(0)
        left = torch.searchsorted(cumulative, u).clamp(max=self.bins - 1)
        x = left + 1 - (cumulative[left] - u) / p[left]
        return self._t_min + (1 - self._t_min) * x / self.bins

    def density(self, t: Tensor) -> Tensor:
        return self._probabilities()[self._index(t)] * self.bins / (1 - self._t_min)


class LossSecondMoment(Binned):
    """p(t) ∝ sqrt(E[loss²]) over the last `history` losses of each bin (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every bin has its history full.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, history: int = 10, uniform: float = 0.001, bins: int = 128) -> None:
        super().__init__(uniform, bins)
        self.history = history

    def _make_history(self, bins: int) -> None:
        self.register_buffer("losses", torch.zeros(bins, self.history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.int64))

    def _learned(self) -> Tensor | None:
        if bool((self.counts < self.history).any()):
            return None
        return self.losses.cpu().square().mean(1).sqrt()

    def _learn(self, index: Tensor, loss: Tensor) -> None:
        order = index.argsort(stable=True)
        index, loss = index[order], loss[order]
        size = torch.bincount(index, minlength=self.bins)
        rank = torch.arange(index.numel()) - (size.cumsum(0) - size)[index]
        last = rank >= size[index] - self.history  # a ring buffer: of more entries only the last ones survive
        counts = self.counts.cpu()
        slot = (counts[index] + rank) % self.history
        self.losses[index[last], slot[last]] = loss[last].to(self.losses.device)
        self.counts += size.to(self.counts.device)


class Adaptive(Binned):
    """p(t) ∝ a moving average of the loss in each bin, so that every sample contributes equally (Kingma & Gao 2023, app. F).

    Args:
        decay: of the moving average, per update.
        uniform: share of uniform draws.
        bins: number of bins in continuous time.
    """

    average: Tensor
    seen: Tensor

    def __init__(self, decay: float = 0.99, uniform: float = 0.05, bins: int = 128) -> None:
        super().__init__(uniform, bins)
        self.decay = decay

    def _make_history(self, bins: int) -> None:
        self.register_buffer("average", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.float64))

    def _learned(self) -> Tensor | None:
        average, seen = self.average.cpu(), self.seen.cpu()
        if bool((seen == 0).any()):
            return None
        return average / seen  # seen is the weight gathered so far: the average has no start-up bias

    def _learn(self, index: Tensor, loss: Tensor) -> None:
        count = torch.bincount(index, minlength=self.bins).double()
        mean = torch.bincount(index, loss, minlength=self.bins) / count.clamp(min=1)
        keep = torch.where(count > 0, self.decay, 1.0)
        self.average.mul_(keep.to(self.average.device)).add_(((1 - keep) * mean).to(self.average.device))
        self.seen.mul_(keep.to(self.seen.device)).add_((1 - keep).to(self.seen.device))


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _normal_cdf(x: Tensor) -> Tensor:
    cdf: Tensor = torch.special.ndtr(x)
    return cdf


def _require_positive(scale: float) -> None:
    if scale <= 0:
        raise ValueError(f"the scale of a time sampler must be positive, got {scale}")
