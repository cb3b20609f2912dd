"""In which order training visits samples that are found by number."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.rng import generator


class Order:
    """A fresh permutation each epoch, a function of (seed, epoch) alone.

    Args:
        length: samples in the data set.
        seed: of the permutations.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._epoch, self._permutation = -1, torch.empty(0)

    def indices(self, position: int, count: int) -> Tensor:
        """Numbers of the samples at position, ..., position + count - 1 of the whole training, int64 (count,)."""
        parts = []
        while count > 0:
            epoch, offset = divmod(position, self.length)
            take = min(count, self.length - offset)
            parts.append(self._of(epoch)[offset : offset + take])
            position, count = position + take, count - take
        return torch.cat(parts)

    def _of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._permutation = torch.randperm(self.length, generator=generator(self.seed, "order", epoch))
            self._epoch = epoch
        return self._permutation


@dataclass(frozen=True)
class AsTheyAre:
    """From the first to the last, and again from the first."""

    length: int

    def indices(self, position: int, count: int) -> Tensor:
        """As of `Order`."""
        return torch.arange(position, position + count) % self.length
