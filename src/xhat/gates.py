"""Gates: at which training steps a term counts. Pure functions of (seed, step): equal on all ranks and after a resume."""

from collections.abc import Callable

import torch

from xhat.counted import generator

Gate = Callable[[int, int], bool]


def always(seed: int, step: int) -> bool:
    """At every step."""
    return True


def every(n: int) -> Gate:
    """At steps 0, n, 2n, ..."""
    if n < 1:
        raise ValueError(f"every(n) needs n >= 1, got {n}")
    return lambda seed, step: step % n == 0


def randomly(p: float) -> Gate:
    """With probability p, independently at each step."""
    if not 0 < p <= 1:
        raise ValueError(f"randomly(p) needs 0 < p <= 1, got {p}")
    return lambda seed, step: float(torch.rand((), generator=generator(seed, "gate", p, step))) < p


def after(n: int) -> Gate:
    """From step n on."""
    return lambda seed, step: step >= n
