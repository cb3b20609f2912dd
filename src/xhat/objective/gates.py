"""Gates: at which training steps a term counts. Pure functions of (seed, step): equal on all ranks and after a resume.

A gate returns the factor that the term has at this step: 0 leaves it out, uncomputed; True and False are 1 and 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from xhat.registry import GATES
from xhat.rng import generator

__all__ = ["Gate", "after", "always", "both", "every", "randomly", "reweighted"]

Gate = Callable[[int, int], float]
"""(seed, step) -> the factor of a term's weight at this step; 0 leaves the term out."""


@GATES.register
def always(seed: int, step: int) -> float:
    """At every step."""
    return 1.0


@GATES.register
@dataclass(frozen=True)
class every:
    """At steps 0, n, 2n, ..."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"every(n) needs n >= 1, got {self.n}")

    @property
    def share(self) -> float:
        """The part of all steps at which the gate is open."""
        return 1 / self.n

    def __call__(self, seed: int, step: int) -> float:
        return float(step % self.n == 0)


@GATES.register
@dataclass(frozen=True)
class randomly:
    """With probability p, independently at each step."""

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"randomly(p) needs 0 < p <= 1, got {self.p}")

    @property
    def share(self) -> float:
        """The part of all steps at which the gate is open."""
        return self.p

    def __call__(self, seed: int, step: int) -> float:
        return float(float(torch.rand((), generator=generator(seed, "gate", self.p, step))) < self.p)


@GATES.register
@dataclass(frozen=True)
class after:
    """From step n on: a warm-up without the term."""

    n: int

    def __call__(self, seed: int, step: int) -> float:
        return float(step >= self.n)


@GATES.register
@dataclass(frozen=True)
class both:
    """At steps at which both are open, with the product of their factors: both(after(1000), every(4))."""

    first: Gate
    second: Gate

    def __call__(self, seed: int, step: int) -> float:
        return float(self.first(seed, step)) * float(self.second(seed, step))


@GATES.register
@dataclass(frozen=True)
class reweighted:
    """The gate with factor 1/(its share of the steps) where it is open.

    The term then weighs on average what it would at every step: its mean gradient is unchanged, and comes in rarer, larger
    kicks. Without it, every(4) also means a quarter of lambda.
    """

    gate: Gate

    def __post_init__(self) -> None:
        if not isinstance(self.gate, every | randomly):
            raise ValueError("reweighted takes every(n) or randomly(p): only they are open at a known share of the steps")

    def __call__(self, seed: int, step: int) -> float:
        assert isinstance(self.gate, every | randomly)
        return float(self.gate(seed, step)) / self.gate.share
