"""Pictures of several shapes: each goes to the size that is nearest in its aspect ratio, and each step is of one size."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from xhat import rng
from xhat.data.batch import Batch
from xhat.data.shape import DataShape
from xhat.data.size import Size
from xhat.data.source import DataSource
from xhat.rng import Shard

BLOCK = 1024
"""Steps whose sizes are drawn together."""


class Part(Protocol):
    """Samples of one size."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> DataShape: ...
    def get(self, step: int, shard: Shard, rows: int) -> Batch: ...
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...


def nearest(width: int, height: int, sides: Sequence[Size]) -> int:
    """The number of the size whose aspect ratio is nearest, by its logarithm; of several alike the first."""
    away = [abs(math.log(width / height) - math.log(wide / high)) for high, wide in sides]
    return min(range(len(sides)), key=lambda k: (round(away[k], 9), k))


class Buckets:
    """A source of the samples of several: step n is of one of them, a function of (seed, n), each as often as it has samples.

    A part's own steps are counted among themselves, so that each of its samples is visited as often as any other. The first
    step is of the first part, which is what is shown and measured.

    Args:
        parts: of one size each; the first is the largest.
        held_out: samples to measure on, of the first.
        seed: of the choice.
    """

    def __init__(self, parts: Sequence[Part], held_out: DataSource | None, seed: int) -> None:
        self.parts, self.held_out, self.seed = parts, held_out, seed
        self.shape, self.name = parts[0].shape, parts[0].name
        self.samples = tuple(part.shape.sample for part in parts)
        sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)
        self._upto = (sizes / sizes.sum()).cumsum(0)
        self._drawn: list[torch.Tensor] = []
        self._before = [torch.zeros(len(parts), dtype=torch.int64)]

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`."""
        part, own = self._place(step)
        return self.parts[part].get(own, shard, rows)

    @property
    def firsts(self) -> tuple[int, ...]:
        """Steps that show each size for the first time."""
        found: dict[int, int] = {}
        step = 0
        while len(found) < len(self.parts):
            found.setdefault(self._place(step)[0], step)
            step += 1
        return tuple(found.values())

    def fingerprint(self) -> str:
        """As of `DataSource`."""
        return " and ".join(part.fingerprint() for part in self.parts)

    def available(self, most: int) -> int:
        """How many of the first size there are, at most so many."""
        return min(most, len(self.parts[0]))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _place(self, step: int) -> tuple[int, int]:
        """Which part a step is of, and how many earlier steps were."""
        block, inside = divmod(step, BLOCK)
        while len(self._drawn) <= block:
            self._draw()
        drawn = self._drawn[block]
        part = int(drawn[inside])
        return part, int(self._before[block][part] + (drawn[:inside] == part).sum())

    def _draw(self) -> None:
        block, last = len(self._drawn), len(self.parts) - 1
        u = torch.rand(BLOCK, dtype=torch.float64, generator=rng.generator(self.seed, "sizes", block))
        drawn = torch.searchsorted(self._upto, u, right=True).clamp(max=last)
        if block == 0:
            drawn[0] = 0
        self._drawn.append(drawn)
        self._before.append(self._before[-1] + torch.bincount(drawn, minlength=len(self.parts)))


def sorted_into(sides: Sequence[Size], sizes: Sequence[Size], make: Callable[[Size, list[int]], Part]) -> list[Part]:
    """The parts of samples of these sizes (width, height), the largest first; sizes that none is nearest to have no part."""
    which = [nearest(*size, sides) for size in sizes]
    kept = [(side, [i for i, k in enumerate(which) if k == number]) for number, side in enumerate(sides)]
    kept = sorted((pair for pair in kept if pair[1]), key=lambda pair: -len(pair[1]))
    return [make(side, rows) for side, rows in kept]
