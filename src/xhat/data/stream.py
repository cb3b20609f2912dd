"""An iterable of batches as a data source."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch

from xhat import rng
from xhat.data.batch import Batch
from xhat.data.reading import joined, part, whole_batch
from xhat.errors import DataError
from xhat.rng import Shard

SKIPPED = 256
"""Samples that are read at a time on the way to where training is."""


class Stream:
    """A data source out of an iterable of batches, read from its beginning to where training is.

    The order is the iterable's own; where it shuffles by torch's global numbers, as a DataLoader does, these are a function of
    the number of the pass, so that every rank and a resumed run see the same. A resumed run reads up to where it was, which
    takes its time: a data set whose samples have numbers is better handed to `from_dataset`.

    Args:
        batches: iterated again for each epoch: a DataLoader, a list, a function that makes an iterator. Each item is
            x0 (B, ...), (x0, label) or a `Batch`, of any number of samples.
        read: an item -> one of these; by default as it is.
        name: for messages.

    Raises:
        DataError: it can be iterated only once.
    """

    def __init__(
        self,
        batches: Iterable[Any] | Callable[[], Iterator[Any]],
        read: Callable[[Any], Any] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.name = name or type(batches).__name__
        if iter(batches) is batches if isinstance(batches, Iterable) else not callable(batches):
            raise DataError(f"{self.name} can be read only once: give a function that makes it, a list or a DataLoader")
        self._batches, self._read = batches, read
        self._open: Iterator[Any] | None = None
        self._position, self._epoch, self._left, self._process = 0, 0, list[Batch](), os.getpid()

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`; going back starts anew."""
        wanted = step * shard.total + shard.first
        if self._open is None or wanted < self._position or self._process != os.getpid():  # a fork shares a place in open files
            self._process = os.getpid()
            self._open, self._position, self._left, self._epoch = self._begin(), 0, [], 0
        while wanted > self._position:  # read and forgotten, a piece at a time
            self._take(min(wanted - self._position, SKIPPED))
        return joined(self._take(rows))

    def available(self, most: int) -> int:
        """How many samples come before the end, at most so many."""
        count = 0
        for item in self._begin():
            count += len(self._batch(item).x0)
            if count >= most:
                return most
        return count

    def fingerprint(self) -> str:
        """What its samples look like: whoever reads a stream does not know all of it."""
        first = self._batch(next(self._begin()))
        told = sorted({*(first.cond or {}), *(first.extra or {})})
        return f"stream of {tuple(first.x0.shape[1:])} {first.x0.dtype} {' '.join(told)}".strip()

    def _begin(self, epoch: int = 0) -> Iterator[Any]:
        """A pass, whose shuffling is a function of its number, if it draws from torch's global numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.generator("stream", epoch).initial_seed())
            again = iter(iter(self._batches) if isinstance(self._batches, Iterable) else self._batches())
            first = next(again, None)  # a DataLoader draws its order when it is first asked
        return again if first is None else chain([first], again)

    def _take(self, rows: int) -> list[Batch]:
        """The next samples, in pieces."""
        taken: list[Batch] = []
        while rows > 0:
            if not self._left:
                self._left = [self._next()]
            batch = self._left.pop()
            count = min(rows, len(batch.x0))
            taken.append(part(batch, slice(0, count)))
            if count < len(batch.x0):
                self._left = [part(batch, slice(count, None))]
            rows, self._position = rows - count, self._position + count
        return taken

    def _next(self) -> Batch:
        assert self._open is not None
        for _ in range(2):
            for item in self._open:
                if len((batch := self._batch(item)).x0):
                    return batch
            self._epoch += 1
            self._open = self._begin(self._epoch)
        raise DataError(f"{self.name} gives no samples")

    def _batch(self, item: Any) -> Batch:
        batch = whole_batch(item if self._read is None else self._read(item), self.name)
        if batch.x0.ndim < 2:
            raise DataError(
                f"{self.name} gives samples {tuple(batch.x0.shape)} where batches are needed: put it into a DataLoader"
            )
        return batch
