"""Densities of time that follow the losses."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xhat.budgets import require_at_most
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times.base import TimeSampler
from xhat.registry import TIMES
from xhat.tensors import average_in_bins

__all__ = ["Adaptive", "Binned", "LossSecondMoment"]

LARGEST = 1e150
"""Losses count as this at most, so that their squares and sums are finite."""


class Binned(TimeSampler):
    """A piecewise constant density over equal cells of the support, learned from the size of the losses seen.

    The history is empty until the first losses come; then it has as many cells as their schedule has: one per step, or `bins`.

    Whatever the losses are, every bin has at least its part of the uniform share, so that no importance is above 1/uniform.
    Losses may be negative (a score, a learned uncertainty): what counts of them is |loss|.

    Args:
        uniform: share of uniform draws mixed in, so that no bin starves.
        bins: number of bins in continuous time; a discrete schedule has one per step.
    """

    learns = True
    least = 1
    """How many losses each bin must have had."""

    def __init__(self, uniform: float, bins: int) -> None:
        super().__init__()
        if not 0 < uniform <= 1:
            raise ValueError(f"the uniform share must be in (0, 1], got {uniform}")
        if bins < 1:
            raise ValueError(f"a density over bins needs at least 1 bin, got {bins}")
        require_at_most(100_000, bins=bins)
        self.uniform, self.bins = uniform, bins

    @abstractmethod
    def _learned(self) -> Tensor | None:
        """Unnormalized probabilities (cells,), at least 0, float64; None while too little is known."""

    @abstractmethod
    def _learn(self, index: Tensor, loss: Tensor) -> None:
        """Take in the sizes of losses (n,), at least 0, of the cells index (n,)."""

    def update(self, schedule: Schedule, t: Tensor, loss: Tensor) -> None:
        """Take in the weighted losses (n,) of images at times t (n,), of the whole global batch; NaN and inf are left out."""
        for history in self.buffers(recurse=False):
            if not len(history):  # in place: a data-parallel wrapper holds the same tensors
                history.resize_(self._count(schedule), *history.shape[1:]).zero_()
        t, loss = t.detach().to(torch.float64).cpu(), loss.detach().to(torch.float64).cpu()
        known = torch.isfinite(loss)
        self._learn(self._index(schedule, t[known]), loss[known].abs().clamp(max=LARGEST))

    def unmet(self, schedule: Schedule, steps: int) -> str | None:
        if not self._known():
            return "has drawn evenly to the end, because no term at the drawn time has shown it a loss"
        if self._learned() is None:
            needed = f"{self.least} loss{'es' * (self.least > 1)} at each of {self._count(schedule)} levels"
            return f"has drawn evenly to the end, because it waits for {needed}: train longer, or choose others"
        return None

    def _known(self) -> bool:
        """Whether any losses have come."""
        return all(len(history) for history in self.buffers(recurse=False))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        histories = {prefix + name: history for name, history in self.named_buffers(recurse=False)}
        saved = {name: state_dict[name] for name in histories if name in state_dict}
        if len({len(history) for history in saved.values()}) == 1:  # as many cells as it was learned on
            for name, history in saved.items():
                histories[name].resize_(len(history), *histories[name].shape[1:])  # another depth is refused below
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _count(self, schedule: Schedule) -> int:
        """Cells of a schedule.

        Raises:
            ValueError: the history is of a schedule with another number of them.
        """
        count, known = schedule.steps or self.bins, next(len(history) for history in self.buffers(recurse=False))
        if known not in (0, count):
            raise ValueError(
                f"this {type(self).__name__} has learned on a schedule of {known} cells, this one has {count}: make a new one"
            )
        return count

    def _index(self, schedule: Schedule, t: Tensor) -> Tensor:
        count = self._count(schedule)
        if schedule.steps is not None:
            return ((t * count).round().long() - 1).clamp(0, count - 1)
        return ((t - schedule.t_min) / (1 - schedule.t_min) * count).long().clamp(0, count - 1)

    def _cells(self, schedule: Schedule) -> Tensor:
        count = self._count(schedule)
        learned = self._learned() if self._known() else None
        if learned is None or not bool(learned.sum() > 0):
            return torch.full((count,), 1 / count, dtype=torch.float64)
        share = learned / learned.max()  # a sum of tiny numbers would have lost its digits
        return (1 - self.uniform) * share / share.sum() + self.uniform / count

    def _ends(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def cdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        p = self._cells(schedule)
        x = ((t - schedule.t_min) / (1 - schedule.t_min) * len(p)).clamp(0, len(p))
        left = x.long().clamp(max=len(p) - 1)
        return p.cumsum(0)[left] - p[left] * (1 - (x - left))

    def icdf(self, schedule: Schedule, u: Tensor) -> Tensor:
        p = self._cells(schedule)
        cumulative = p.cumsum(0)
        left = torch.searchsorted(cumulative, u).clamp(max=len(p) - 1)
        x = left + 1 - (cumulative[left] - u) / p[left]
        return schedule.t_min + (1 - schedule.t_min) * x / len(p)

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        p = self._cells(schedule)
        return p[self._index(schedule, t)] * len(p) / (1 - schedule.t_min)


@TIMES.register
class LossSecondMoment(Binned):
    """p(t) ∝ sqrt(E[loss²]) over the last `history` losses of each bin (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every bin has its history full.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, history: int = 10, uniform: float = 0.001, bins: int = 128) -> None:
        super().__init__(uniform, bins)
        require_at_most(1000, history=history)
        self.history = self.least = history
        self.register_buffer("losses", torch.zeros(0, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def _learned(self) -> Tensor | None:
        if bool((self.counts < self.history).any()):
            return None
        return self.losses.cpu().square().mean(1).sqrt()

    def _learn(self, index: Tensor, loss: Tensor) -> None:
        order = index.argsort(stable=True)
        index, loss = index[order], loss[order]
        size = torch.bincount(index, minlength=len(self.counts))
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
        self.register_buffer("average", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(0, dtype=torch.float64))

    def _learned(self) -> Tensor | None:
        average, seen = self.average.cpu(), self.seen.cpu()
        if bool((seen == 0).any()):
            return None
        return average / seen  # seen is the weight gathered so far: the average has no start-up bias

    def _learn(self, index: Tensor, loss: Tensor) -> None:
        average_in_bins(self.average, self.seen, index, loss, self.decay)
