"""Samples that cannot be read: the next good one takes their place, the same one on every process and after a resume."""

from collections.abc import Callable, Mapping

from xhat.data.batch import Batch
from xhat.data.layers import layers
from xhat.data.wording import counted, some
from xhat.errors import DataError

MOST_IN_A_ROW, NAMED = 100, 5
"""Bad samples one after the other: more are no accident. How many are named."""


class Lost:
    """What a source could not read.

    Attributes:
        names: of the samples, each with why.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def good(self, number: int, length: int, one: Callable[[int], Batch], *, skip: bool) -> Batch:
        """Sample `number` of `length`, or the next one that can be read.

        Args:
            number: of the sample.
            length: how many there are; after the last comes the first.
            one: a number -> its sample.
            skip: whether another may take its place.

        Raises:
            DataError: it cannot be read, and may not be skipped; or none of the next hundred can.
        """
        for further in range(min(length, MOST_IN_A_ROW)):
            try:
                return one((number + further) % length)
            except DataError as error:
                if not skip:
                    raise DataError(f"{error}; or leave it out with --skip_corrupt true") from None
                self.names.setdefault(str((number + further) % length), str(error))
        raise DataError(f"none of {counted(min(length, MOST_IN_A_ROW), 'sample')} from number {number} on can be read")


def lost_of(source: object) -> Lost | None:
    """What a source, or the one that it wraps, could not read; None of one that keeps no count."""
    return next((found for one in layers(source) if isinstance(found := getattr(one, "lost", None), Lost)), None)


def told(names: Mapping[str, str], before: int) -> str | None:
    """One line about samples that were lost since there were `before` of them; None once five have been named."""
    fresh = list(names.values())[before:]
    if not fresh or before >= NAMED:
        return None
    return f"left out, the next one is taken instead: {some(fresh[: NAMED - before])}"
