"""The learning rate of a step: a warm-up, then a cosine over the whole budget."""

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from xhat.config.options import Options
from xhat.training.budget import Budget

JUMP = 1.1
"""How much another budget may change the learning rate without a word."""


def learning_rate_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Share of the peak learning rate: linear warm-up times a cosine decay to zero.

    Args:
        step: 0-based step about to be taken.
        progress: share of the budget that is spent, in [0, 1].
        warmup_steps: length of the warm-up.
    """
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))


class LearningRate:
    """The rates of all optimizers, each with a peak of its own.

    Args:
        optimizers: at their peak learning rates.
        budget: over which they decay.
        warmup_steps: length of the warm-up.
    """

    def __init__(self, optimizers: Sequence[Optimizer], budget: Budget, warmup_steps: int) -> None:
        self.optimizers, self.budget, self.warmup_steps = optimizers, budget, warmup_steps
        self.peaks = [float(group["lr"]) for group in self._groups()]

    def set(self, step: int, seconds: float) -> float:
        """Set them for step number `step`, 0-based, after `seconds` of training; that of the first optimizer is returned."""
        factor = learning_rate_factor(step, self.budget.progress(step, seconds), self.warmup_steps)
        for group, peak in zip(self._groups(), self.peaks, strict=True):
            group["lr"] = peak * factor
        return self.peaks[0] * factor

    def _groups(self) -> list[dict[str, Any]]:
        """As they are now: an optimizer that loads a state, also its own, has new ones."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]


def rate_jump(before: Options, now: Options, step: int, seconds: float) -> str | None:
    """What to say of the learning rate when a run goes on with another budget; None if it goes on much as it would have.

    The cosine runs over the whole budget, so that the same step is earlier on a longer one.

    Args:
        before: the options with which the steps so far were trained.
        now: the options from here on.
        step: steps done.
        seconds: trained so far.
    """
    rates = [_rate(before, step, seconds), _rate(now, step, seconds)]
    if step == 0 or Budget.of(now).progress(step, seconds) == 1 or max(rates) <= JUMP * min(rates):
        return None
    last, rate = _rate(before, step - 1, seconds), rates[1]
    way = "back up" if rate > last else "down"
    return f"the learning rate goes from {last:.1e} {way} to {rate:.1e}, since the cosine now ends {Budget.of(now).end()}"


def _rate(options: Options, step: int, seconds: float) -> float:
    progress = Budget.of(options).progress(step, seconds)
    return options.optimizer.lr * learning_rate_factor(step, progress, options.optimizer.warmup_steps)
