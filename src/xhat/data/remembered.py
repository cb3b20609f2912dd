"""Samples that are decoded once: what is read ahead of a training is kept in memory, where all of it fits."""

import math
import mmap
from typing import Any

import torch
from torch import Tensor

from xhat.budgets import memory
from xhat.data.batch import Batch, bytes_in
from xhat.data.over import over_inner
from xhat.data.rows import Rows
from xhat.data.source import DataSource

SHARE = 1 / 8
"""Of the machine's memory, that decoded samples may take in all of its processes."""


class Remembered(Rows):
    """Rows whose samples are decoded when they are first asked for, by whichever worker, and then known to all.

    Args:
        rows: whose samples are the same each time.
        first: one of them, as a batch.
    """

    decodes = True

    def __init__(self, rows: Any, first: Batch) -> None:
        self.rows, self.lost, n = rows, rows.lost, len(rows)
        self.x0 = _shared(n, first.x0)
        self.cond = {name: _shared(n, value) for name, value in (first.cond or {}).items()}
        self.known, self.bad = (_shared(count, torch.zeros(1, dtype=torch.bool)) for count in (n, 1))
        self.last = torch.zeros(0, dtype=torch.int64)
        super().__init__(self._at, n, rows.mark, rows.order, rows.name, rows.shape, rows.held_out)

    @property
    def complete(self) -> bool:
        """Whether all are known, and workers have nothing to tell of any that cannot be read."""
        return bool(self.known.all()) and not bool(self.bad)

    def _at(self, index: Tensor) -> Batch:
        self.known[self.last] = True  # not as soon as they are written: other processes might see that first
        new = index[~self.known[index]].unique()
        if len(new):
            batch = self.rows.at(new)
            self.bad |= bool(self.lost.names)
            self.x0[new] = batch.x0
            for name, value in (batch.cond or {}).items():
                self.cond[name][new] = value
        self.last = new
        return Batch(self.x0[index], {name: value[index] for name, value in self.cond.items()} or None)


def remembered(source: DataSource, processes: int) -> DataSource:
    """A source that decodes each sample once, if its samples are always the same and fit; else the source as it is.

    Args:
        source: of the training.
        processes: of the training on this machine, each of which has its own.
    """

    def inner(rows: DataSource) -> DataSource:
        if not (isinstance(rows, Rows) and getattr(rows, "decoded_alike", False)):
            return rows
        first = rows.at(torch.zeros(1, dtype=torch.int64))
        fits = bytes_in(first) * len(rows) * processes <= SHARE * memory()
        return Remembered(rows, first) if fits and first.extra is None else rows

    return over_inner(source, inner)


def _shared(n: int, one: Tensor) -> Tensor:
    """Zeros (n, ...), which take memory as they are written, and are the same for processes that are forked later."""
    shape = (n, *one.shape[1:])
    held = mmap.mmap(-1, math.prod(shape) * one.element_size())
    return torch.frombuffer(held, dtype=one.dtype).view(shape)
