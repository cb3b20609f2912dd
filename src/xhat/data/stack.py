"""Samples that are found by number and read when they are asked for: of memory, or of a file that is larger than it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

PART = 8 * 2**20
"""Bytes that are read at a time by whoever looks at all."""


class Stack:
    """A tensor (N, ...) of which only those samples are in memory that are asked for.

    Args:
        read: numbers, int64 (n,) or a slice from one to another, -> their samples (n, ...).
        length: how many there are.
        sample: the axes of one.
        dtype: of its values.
        index: numbers of those that belong to the stack, in its order; by default all.
        in_memory: whether reading is from this process's own memory.
    """

    is_meta = False

    def __init__(
        self,
        read: Callable[[Any], Tensor],
        length: int,
        sample: tuple[int, ...],
        dtype: torch.dtype,
        index: Tensor | None = None,
        *,
        in_memory: bool = False,
    ) -> None:
        self.in_memory = in_memory
        self._read, self._length, self._sample, self._index = read, length, sample, index
        self.dtype = dtype

    @classmethod
    def of(cls, values: Tensor) -> "Stack":
        """What is in memory already."""

        def read(which: Any) -> Tensor:
            return values[torch.from_numpy(which) if isinstance(which, np.ndarray) else which]

        return cls(read, len(values), tuple(values.shape[1:]), values.dtype, in_memory=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self), *self._sample)

    def __len__(self) -> int:
        return self._length if self._index is None else len(self._index)

    def __getitem__(self, which: int | slice | Tensor | tuple[Any, ...]) -> Tensor:
        """Samples by number, as a tensor of their own; with more than one index, places in these."""
        if isinstance(which, tuple):
            first, *rest = which
            return self[first][tuple(rest) if isinstance(first, int) else (slice(None), *rest)]
        if isinstance(which, int):
            return self[which : which + 1 or None][0]
        if self._index is None and isinstance(which, slice):
            return self._read(slice(*which.indices(len(self))))
        if isinstance(which, slice):
            assert self._index is not None
            return self._read(self._index[which].numpy())
        if which.dtype == torch.bool:
            which = which.nonzero().squeeze(1)
        return self._read((which if self._index is None else self._index[which]).cpu().numpy())

    def chosen(self, index: Tensor) -> "Stack":
        """Some of them, none of which is read yet."""
        of = index if self._index is None else self._index[index]
        return Stack(self._read, self._length, self._sample, self.dtype, of, in_memory=self.in_memory)

    def each(self, make: Callable[[Tensor], Tensor], sample: tuple[int, ...], dtype: torch.dtype) -> "Stack":
        """What is made of them, as they are read: samples (n, ...) -> as many others."""
        made = lambda which: make(self._read(which))  # noqa: E731
        return Stack(made, self._length, sample, dtype, self._index, in_memory=self.in_memory)


Samples = Tensor | Stack
"""(N, ...), all in memory or not."""


def parts_of(samples: Samples) -> Iterator[Tensor]:
    """All of them, in order, as many at a time as take `PART` bytes."""
    each = max(1, int(np.prod(samples.shape[1:])) * samples.dtype.itemsize)
    rows = max(1, PART // each)
    for first in range(0, len(samples), rows):
        yield samples[first : first + rows]


def view_of(samples: Samples, index: Tensor) -> Stack:
    """Some of them, not copied."""
    return (samples if isinstance(samples, Stack) else Stack.of(samples)).chosen(index)
