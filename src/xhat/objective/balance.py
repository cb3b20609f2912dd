"""How the terms of a step are balanced, and what is learned from a whole step: by multipliers and by the time sampler."""

import functools
import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.times import TimeSampler
from xhat.objective.draw import Draw
from xhat.objective.global_batch import GlobalBatch
from xhat.objective.multipliers import FromGradients, Multiplier, flat_gradient
from xhat.objective.terms import Loss, Term


@dataclass(frozen=True)
class Balance:
    """What the mean values of a step are multiplied with.

    Attributes:
        factors: of each term, gate included.
        of_base: of the sum of the terms whose weights are numbers, beside their own factors; None is 1.
    """

    factors: Mapping[str, float | Tensor]
    of_base: Tensor | None = None


class Balancer:
    """Finds the factors of a step's terms, and hands multipliers and time sampler what they learn from.

    Args:
        terms: of the objective.

    Raises:
        ValueError: a multiplier compares gradients with those of terms whose weights are numbers, and there are none; a loss
            that learns stands inside another one.
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self.terms = terms
        self.multipliers = {name: term.weight for name, term in terms.items() if isinstance(term.weight, Multiplier)}
        if any(isinstance(m, FromGradients) for m in self.multipliers.values()) and len(self.multipliers) == len(terms):
            raise ValueError("GradientRatio and ConflictFree compare with a base term: give one term a number as its weight")
        for name, term in terms.items():
            inner = [m for m in term.loss.modules() if isinstance(m, Loss) and m.observes and m is not term.loss]
            if inner:
                kind = type(inner[0]).__name__
                raise ValueError(f'term "{name}": {kind} learns from the values of its term: make it the whole loss of a term')
        self._batch = GlobalBatch()
        self._measured = Balance({})

    @property
    def learns(self) -> bool:
        """Whether multipliers or losses learn from each step."""
        return bool(self.multipliers) or any(term.loss.observes for term in self.terms.values())

    def balance(
        self,
        denoiser: Denoiser,
        values: Mapping[str, Tensor],
        gates: Mapping[str, float],
        step: int,
        *,
        first: bool,
        measure: bool,
    ) -> Balance:
        """The factors of a step's terms.

        Args:
            denoiser: whose parameters gradients are compared in.
            values: mean of each term that counts, ().
            gates: its gate's factor.
            step: number of the training step.
            first: whether this is the step's first micro-batch, on which gradients are measured.
            measure: whether gradients may be measured at all: in training, with gradients.
        """
        factors = {name: gates[name] * self._weight(name, values[name]) for name in values}
        base = [factors[name] * value for name, value in values.items() if name not in self.multipliers]
        due = {
            name: m for name, m in self.multipliers.items() if name in values and isinstance(m, FromGradients) and m.due(step)
        }
        if not (due and base and measure and torch.is_grad_enabled()):
            return Balance(factors)
        if first:
            self._measured = self._measure(denoiser, due, base, values, gates)
        return Balance({**factors, **self._measured.factors}, self._measured.of_base)

    def weighted_sum(self, balance: Balance, values: Mapping[str, Tensor], zero: Tensor) -> Tensor:
        """The weighted sum of the terms, ()."""
        weighted = {name: _times(balance.factors[name], value) for name, value in values.items()}
        total = functools.reduce(operator.add, weighted.values()) if weighted else zero
        if balance.of_base is None:
            return total
        base = sum((value for name, value in weighted.items() if name not in self.multipliers), start=zero)
        return total + (balance.of_base - 1) * base

    def learn(
        self,
        denoiser: Denoiser,
        times: TimeSampler,
        draw: Draw,
        each: Mapping[str, Tensor],
        balance: Balance,
        samples: int,
    ) -> None:
        """Hand time sampler, losses and multipliers what they learn from: the whole global batch, once, equal on every rank.

        Args:
            denoiser: of the draw.
            times: the time sampler.
            draw: of this part of the step.
            each: values of the terms that count, importance-weighted, (B,).
            balance: of the step.
            samples: of the global batch.
        """
        observing = [name for name in self.multipliers if name in each]
        learning = [name for name in each if self.terms[name].loss.observes]
        if not times.learns and not observing and not learning:
            return
        with torch.no_grad():
            weighted = self._losses_at_time(denoiser, draw, each, balance)
            drawn = any(self.terms[name].loss.at_drawn_time for name in each)  # a chain from noise says nothing of the times
            followed = draw.noise_error().to(weighted) if times.learns_noise_error and drawn else weighted
            rows = [draw.t.to(weighted), followed]  # then values and their scale for each multiplier, values for each loss
            for name in observing:
                loss = self.terms[name].loss
                scale = loss.scale(denoiser, draw).to(weighted)
                rows += [each[name], scale * draw.importance if loss.at_drawn_time else scale]
            rows += [self._unweighted(name, each[name], draw) for name in learning]
            whole = self._batch.collect(draw.step, torch.stack(rows), samples)
        if whole is None:
            return
        if drawn:
            times.update(denoiser.schedule, whole[0], whole[1])
        for name, values in zip(learning, whole[2 + 2 * len(observing) :], strict=True):
            self.terms[name].loss.update(denoiser.schedule, whole[0], values)
        for i, name in enumerate(observing):
            value, scale_sum = whole[2 + 2 * i : 4 + 2 * i].sum(1)
            known = (scale_sum > 0) & torch.isfinite(value)
            self._learn(name, value / scale_sum, scale_sum / samples, known)

    def _unweighted(self, name: str, value: Tensor, draw: Draw) -> Tensor:
        return value / draw.importance if self.terms[name].loss.at_drawn_time else value

    def _weight(self, name: str, value: Tensor) -> float | Tensor:
        weight = self.terms[name].weight
        return weight().to(value).nan_to_num(0.0) if isinstance(weight, Multiplier) else weight

    def _measure(
        self,
        denoiser: Denoiser,
        due: Mapping[str, FromGradients],
        base: list[Tensor],
        values: Mapping[str, Tensor],
        gates: Mapping[str, float],
    ) -> Balance:
        """The factors that multipliers find from the gradients of their terms and of the base."""
        parameters = [p for p in denoiser.parameters() if p.requires_grad]
        of_base = flat_gradient(sum(base, start=torch.zeros_like(base[0])), parameters, keep=True)
        factors, change = {}, torch.zeros_like(base[0])
        for name, multiplier in due.items():
            own = flat_gradient(values[name], parameters, keep=True)
            with torch.autocast(own.device.type, enabled=False):  # it would round products of vectors to bf16
                a, b = (g.to(torch.promote_types(g.dtype, torch.float32)) for g in (of_base, own))
                both, mine = multiplier.factors(a @ a, a @ b, b @ b, gates[name])
            factors[name], change = gates[name] * mine.to(own), change + both.to(own) - 1
        return Balance(factors, 1 + change)

    def _losses_at_time(self, denoiser: Denoiser, draw: Draw, each: Mapping[str, Tensor], balance: Balance) -> Tensor:
        """The weighted loss of each image, without importance and without what depends on the time alone, (B,)."""
        names = [name for name in each if self.terms[name].loss.at_drawn_time]
        offset = {name: self.terms[name].loss.offset(denoiser, draw) for name in names}
        return sum(
            (balance.factors[name] * (each[name] / draw.importance - offset[name]) for name in names),
            start=torch.zeros_like(draw.importance),
        )

    def _learn(self, name: str, mean: Tensor, scale: Tensor, known: Tensor) -> None:
        multiplier = self.multipliers[name]
        if multiplier.learn(mean, scale, known) and (line := multiplier.warning_message()):
            warnings.warn(f'term "{name}": {line}', stacklevel=2)


def _times(factor: float | Tensor, value: Tensor) -> Tensor:
    """A product; of a factor of 1 the value, whose gradient need not pass through another operation."""
    return value if isinstance(factor, float) and factor == 1 else factor * value
