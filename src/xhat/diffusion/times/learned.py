"""Densities of time that follow the losses."""

from abc import abstractmethod

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times.base import TimeSampler
from xhat.registry import TIMES

LARGEST = 1e150
"""Losses count as this at most, so that their squares and sums are finite."""


class Binned(TimeSampler):
    """A piecewise constant density over equal bins of the support, learned from the size of the losses seen.

    Whatever the losses are, every bin has at least its part of the uniform share, so that no importance is above 1/uniform.
    Losses may be negative (a score, a learned uncertainty): what counts of them is |loss|.

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
        """Unnormalized probabilities (bins,), at least 0, float64; None while too little is known."""

    @abstractmethod
    def _learn(self, index: Tensor, loss: Tensor) -> None:
        """Take in the sizes of losses (n,), at least 0, of the bins index (n,)."""

    def bind(self, schedule: Schedule) -> None:
        first = self.schedule is None
        super().bind(schedule)
        if first:
            self.bins = schedule.steps or self.bins
            self._make_history(self.bins)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Take in the weighted losses (n,) of images at times t (n,), of the whole global batch; NaN and inf are left out."""
        t, loss = t.detach().to(torch.float64).cpu(), loss.detach().to(torch.float64).cpu()
        known = torch.isfinite(loss)
        self._learn(self._index(t[known]), loss[known].abs().clamp(max=LARGEST))

    def _index(self, t: Tensor) -> Tensor:
        if self.schedule is not None and self.schedule.steps is not None:
            return ((t * self.bins).round().long() - 1).clamp(0, self.bins - 1)
        return ((t - self._t_min) / (1 - self._t_min) * self.bins).long().clamp(0, self.bins - 1)

    def _probabilities(self) -> Tensor:
        learned = self._learned() if self.schedule is not None else None
        if learned is None or not bool(learned.sum() > 0):
            return torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        share = learned / learned.max()  # a sum of tiny numbers would have lost its digits
        return (1 - self.uniform) * share / share.sum() + self.uniform / self.bins

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


@TIMES.register
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


@TIMES.register
class Adaptive(Binned):
    """p(t) ∝ a moving average of |loss| in each bin, so that every sample contributes equally (Kingma & Gao 2023, app. F).

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
