"""Several processes of one training: which of them this is, and what one knows told to all."""

import os
from typing import Any, TypeVar

T = TypeVar("T")


def main_process() -> bool:
    """Whether this is the process that writes: the only one, or rank 0 of several."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def from_main(found: T) -> T:
    """What the main process has found, on all of them; they all ask, once Accelerate has brought them together."""
    if processes() == 1:
        return found
    from accelerate.utils import broadcast_object_list

    held = [found]
    broadcast_object_list(held, from_process=0)
    return held[0]


def from_all(found: T) -> list[T]:
    """What each of them has found, in their order, on all of them; they all ask."""
    if processes() == 1:
        return [found]
    import torch

    held: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(held, found)
    return held
