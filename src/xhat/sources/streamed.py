"""Samples that come one after the other, counted: the same ones for every number of processes, and after a resume."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from xhat.data.batch import Batch
from xhat.data.lost import MOST_IN_A_ROW, Lost
from xhat.data.reading import together
from xhat.data.shape import DataShape
from xhat.errors import DataError
from xhat.rng import Shard

Raw = Any
"""A sample as its library gives it, not decoded yet."""


class Samples:
    """A data source of samples that come one after the other, pass after pass.

    Every process reads all of them, and decodes its own. Whoever starts in the middle reads up to there without decoding; where
    the length of a pass is known, those before it are not read at all.

    Args:
        begin: the number of a pass -> its samples, always the same ones in the same order.
        decode: a sample -> what it is, as a batch of one without the axis for the batch; or a DataError.
        mark: the fingerprint.
        name: for messages.
        shape: of the data.
        length: samples of a pass; None is not known.
        skip: take the next sample for one that cannot be decoded.
        held_out: samples to measure on.
    """

    decodes = True

    def __init__(
        self,
        begin: Callable[[int], Iterator[Raw]],
        decode: Callable[[Raw], Batch],
        mark: str,
        name: str,
        shape: DataShape,
        *,
        length: int | None = None,
        skip: bool = False,
        held_out: Any = None,
    ) -> None:
        self.begin, self.decode, self.mark, self.name, self.shape = begin, decode, mark, name, shape
        self.length, self.skip, self.held_out, self.lost = length, skip, held_out, Lost()
        self.droppable = shape.classes is not None
        self._open: Iterator[Raw] = iter(())
        self._pass, self._within, self._position, self._process = -1, 0, -1, os.getpid()
        self._ahead = deque[tuple[str, Raw]]()

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`."""
        self._go_to(step * shard.total + shard.first)
        return together([self._taken() for _ in range(rows)])

    def available(self, most: int) -> int:
        """How many samples a pass has, at most so many."""
        if self.length is not None:
            return min(most, self.length)
        return sum(1 for _ in zip(range(most), self.begin(0), strict=False))

    def fingerprint(self) -> str:
        """As of `DataSource`."""
        return self.mark

    def _go_to(self, position: int) -> None:
        """Stand before the sample of this number of the whole training."""
        if (self.length and position // self.length > self._pass) or not 0 <= self._position <= position or self._is_forked():
            skipped = position // self.length if self.length else 0
            self._pass, self._within, self._open = skipped, 0, self.begin(skipped)
            self._position = skipped * (self.length or 0)
            self._ahead.clear()
        while self._position < position:
            self._peek(0)
            self._ahead.popleft()
            self._position += 1

    def _is_forked(self) -> bool:
        """Whether another process opened what is open: both would move the one place in its files that they share."""
        before, self._process = self._process, os.getpid()
        return before != self._process

    def _taken(self) -> Batch:
        """The sample that stands here, or the next one that can be decoded; one step further."""
        found = self._first_good()
        self._ahead.popleft()
        self._position += 1
        return found

    def _first_good(self) -> Batch:
        for further in range(MOST_IN_A_ROW):
            number, raw = self._peek(further)
            try:
                return self.decode(raw)
            except DataError as error:
                if not self.skip:
                    raise DataError(f"{error}; or leave it out with --skip_corrupt true") from None
                self.lost.names.setdefault(number, str(error))
        raise DataError(f"{self.name}: none of {MOST_IN_A_ROW} samples one after the other can be read")

    def _peek(self, further: int) -> tuple[str, Raw]:
        """A sample that comes later, not decoded; the pass and its number in it say which it is."""
        while len(self._ahead) <= further:
            self._ahead.append(self._read())
        return self._ahead[further]

    def _read(self) -> tuple[str, Raw]:
        for _ in range(2):
            try:
                for raw in self._open:
                    self._within += 1
                    return f"{self._pass}: {self._within - 1}", raw
            except DataError:
                raise
            except Exception as error:
                raise DataError(f"{self.name} cannot be read further: {type(error).__name__}: {error}") from error
            self._pass, self._within = self._pass + 1, 0
            self._open = self.begin(self._pass)
        raise DataError(f"{self.name} gives no samples" + (", beside those that are held out" if self.held_out else ""))
