"""Images in memory once for all processes of a machine, instead of once for each."""

import mmap
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xhat.data.images import Images
from xhat.data.stack import Stack, parts_of
from xhat.distributed import from_all, local_processes
from xhat.errors import SharedError, XhatError, with_kind


class _Word(NamedTuple):
    """What the first process of a machine tells the others.

    Attributes:
        machine: its name.
        failure: why there are no images; None if there are.
        images: without their pixels; None if each process reads its own, which no memory holds.
        place: of the pixels: a path that the others can open.
        shape: of the pixels.
    """

    machine: str
    failure: str | None = None
    images: Images | None = None
    place: str = ""
    shape: tuple[int, ...] = ()


def once_per_machine(make: Callable[[], Images]) -> Images:
    """The images that `make` makes; of several processes on a machine the first makes them, and the others see its memory.

    All processes of a training call it together.

    Raises:
        SharedError: the first process has failed, which raises what `make` does.
    """
    if local_processes() == 1:
        return make()
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())  # brings the processes together, as training will
    machine, first = socket.gethostname(), int(os.environ.get("LOCAL_RANK", "0")) == 0
    word, images, file, failure = None, None, None, None
    if first:
        try:
            word, images, file = _made(make, machine)
        except Exception as error:  # which the others have to know of, whatever it is
            failure, word = error, _Word(machine, with_kind(error) if not isinstance(error, XhatError) else str(error))
    words: list[_Word] = [found for found in from_all(word) if found is not None]
    if (failed := next((found for found in words if found.failure is not None), None)) is not None:
        raise failure or SharedError(failed.failure)
    mine = next(found for found in words if found.machine == machine)
    if mine.images is None:
        return images or make()
    pixels = _mapped(mine.place, mine.shape)
    from_all(None)  # until all have it open, its name has to stay
    if file is not None:
        file.close()
    return replace(mine.images, pixels=pixels)


def _made(make: Callable[[], Images], machine: str) -> tuple[_Word, Images | None, IO[bytes] | None]:
    """What to tell, the images, and an open file with their pixels, if they were in memory."""
    images = make()
    in_memory = images.pixels.in_memory if isinstance(images.pixels, Stack) else True
    if not in_memory or not os.path.isdir("/proc/self/fd"):
        return _Word(machine), images, None
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115  without a name: it goes with the last process that has it open
        for part in parts_of(images.pixels):
            file.write(part.contiguous().numpy().data)
        file.flush()
    except OSError:  # no room there: each has its own
        return _Word(machine), images, None
    bare = replace(images, pixels=torch.zeros(1, 1, dtype=torch.uint8))
    return _Word(machine, None, bare, f"/proc/{os.getpid()}/fd/{file.fileno()}", tuple(images.pixels.shape)), None, file


def _mapped(place: str, shape: tuple[int, ...]) -> Tensor:
    with open(place, "rb") as file:  # private and writable, because PyTorch asks for it: nobody writes, and nothing is copied
        held = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.from_numpy(np.frombuffer(held, np.uint8).reshape(shape))
