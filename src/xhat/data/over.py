"""Sources over other sources."""

import copy
from collections.abc import Callable

from xhat.data.source import DataSource, available, name_of, shape_of


class Over:
    """A source that hands on what another one gives, changed; what that one knows of itself, and its fingerprint, are its own.

    Args:
        source: of the samples.
    """

    def __init__(self, source: DataSource) -> None:
        self.source = source
        self.shape, self.name, self.held_out = shape_of(source), name_of(source), getattr(source, "held_out", None)

    def available(self, most: int) -> int:
        """How many samples the source has, at most so many."""
        return available(self.source, most)

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]  # a TypeError where the source does not say

    def fingerprint(self) -> str:
        """That of the source: the same data, whatever is told of them and however they are seen."""
        return self.source.fingerprint()


def over_inner(source: DataSource, make: Callable[[DataSource], DataSource], through: type[Over] = Over) -> DataSource:
    """The same source over another one: what `make` gives for the innermost.

    Args:
        source: stays as it is.
        make: another source of the same samples, or the same source.
        through: which kind of sources over others may be gone through.
    """
    if not isinstance(source, Over):
        return make(source)
    if not isinstance(source, through) or (inner := over_inner(source.source, make, through)) is source.source:
        return source
    other = copy.copy(source)
    other.source = inner
    return other
