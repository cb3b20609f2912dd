"""A source and those that it wraps."""

from collections.abc import Iterator


def layers(source: object) -> Iterator[object]:
    """A source, its `source` if it wraps one, and so on."""
    while source is not None:
        yield source
        source = getattr(source, "source", None)
