"""Sizes that are refused before anything of them is allocated: a machine that swaps, or is killed, says nothing."""

import os
from functools import lru_cache
from pathlib import Path

from xhat.errors import BudgetError

CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where containers say how much memory they have."""
GIB = 2**30
MOST_STEPS = 1_000_000
"""Of a schedule, of a chain, of a bound: eight tables of so many numbers are 64 MB."""
LEAST_SIDE, MOST_SIDE = 4, 4096
"""Of an image, in pixels."""


def cores() -> int:
    """Cores that this process may run on, which a scheduler or taskset may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def memory() -> int:
    """Bytes of memory that this process may hope for: the machine's, or its container's; where nobody says, a TiB."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = 1024 * GIB
    for path in CGROUPS:
        try:
            found = min(found, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


def require_memory(size: float, what: str, remedy: str) -> None:
    """Refuse what is larger than all memory.

    Args:
        size: in bytes.
        what: takes so much.
        remedy: what to change.

    Raises:
        BudgetError: there is not so much.
    """
    if size > memory():
        raise BudgetError(f"{what}: that is {size / GIB:,.1f} GiB, and there are {memory() / GIB:,.1f} GiB of memory: {remedy}")


def require_at_most(most: int, **counts: int | None) -> None:
    """Refuse counts of layers, steps or entries of a table that nobody can mean.

    Args:
        most: of each.
        counts: by name.

    Raises:
        ValueError: names the first that is larger.
    """
    for name, count in counts.items():
        if count is not None and count > most:
            raise ValueError(f"{name} must be at most {most:,}, got {count:,}")
