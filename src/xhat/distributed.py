"""Several processes: which of one training this is, what one knows told to all, and children that end with their parent."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


def main_process() -> bool:
    """Whether this is the process that writes: the only one, or rank 0 of several."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def from_main(found: T) -> T:
    """What the main process has found, on all of them; they all ask, once Accelerate has brought them together."""
    if processes() == 1:
        return found
    from accelerate.utils import broadcast_object_list

    held = [found]
    broadcast_object_list(held, from_process=0)
    return held[0]


def from_all(found: T, group: Any = None) -> list[T]:
    """What each of them has found, in their order, on all of them; they all ask, by way of a group where one is given."""
    if processes() == 1:
        return [found]
    import torch

    held: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(held, found, group)
    return held


@dataclass(frozen=True)
class Shares:
    """Who does what of many things that are alike: of several processes each every `count`-th, and all are given all of it.

    Attributes:
        rank: the number of this process.
        count: of processes.
    """

    rank: int = 0
    count: int = 1

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """What `work` makes of each item, in their order; all processes ask for all of it."""
        for first in range(0, len(items), self.count):
            mine = first + self.rank
            found = work(items[mine]) if mine < len(items) else None
            yield from self._all(found)[: len(items) - first]

    def part(self, n: int, most: int) -> int:
        """How many of n things to do at a time, at most, so that the processes have equally many batches to do."""
        rounds = max(1, -(-n // (max(1, most) * self.count)))
        return max(1, most if self.count == 1 else -(-n // (rounds * self.count)))

    def _all(self, found: R | None) -> list[R]:
        return cast(list[R], [found] if self.count == 1 else from_all(found))


ALONE = Shares()
"""One process that does all."""


def shared_out() -> Shares:
    """Among all processes, which are brought together if they have not been yet; they all ask."""
    if processes() == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())
    return Shares(torch.distributed.get_rank(), torch.distributed.get_world_size())


def end_one_of_several(code: int) -> None:
    """End this process at once with an exit code, if it is one of several; what was to run at its exit has run.

    Threads of the library that talked to the others may still hold what it could not send to one that is gone. If they
    return to an interpreter that is being taken down, they abort it (exit code 134), and nobody sees the code it had.
    """
    if processes() == 1:
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            stream.flush()
    os._exit(code)


ENDS_WITH_STDIN = "XHAT_ENDS_WITH_STDIN"
"""The environment variable of a child whose stdin is a pipe that its parent holds open for as long as it lives."""


def child_environment(**more: str) -> Mapping[str, str]:
    """That of a child that is to end with this process, and is given a pipe as its stdin."""
    return {**os.environ, ENDS_WITH_STDIN: "1", **more}


def end_with_parent() -> None:
    """In such a child: as soon as the parent is gone, however it ended, SIGTERM ends this process, too."""
    if not os.environ.pop(ENDS_WITH_STDIN, ""):
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        signal.raise_signal(signal.SIGTERM) if os.name == "nt" else os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()
