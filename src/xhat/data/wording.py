"""Numbers and names in a line for the user."""

from collections.abc import Sequence

NAMED = 5


def counted(number: int, what: str) -> str:
    """1 file, 2,000 files."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
