"""Images that were decoded once, kept on disk for the next time: their bytes in one file, what is known of them in another."""

import contextlib
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xhat.data.stack import PART, Stack
from xhat.errors import DamagedError
from xhat.files.atomic import naming, write_parts
from xhat.files.cache import cache_folder
from xhat.files.locks import lock_if_possible
from xhat.files.values import read_values, write_values

WAIT, WEEK = 0.2, 7 * 24 * 3600
"""Seconds between two looks at whether another process is done, and in a week."""


@dataclass(frozen=True)
class Pack:
    """What is known of packed images; their bytes lie in a file of the same name.

    Attributes:
        shape: (N, C, H, W).
        crc: of the bytes.
        about: what else, as plain values.
    """

    shape: tuple[int, ...]
    crc: int
    about: dict[str, Any]


def pack_of(key: str) -> tuple[Pack, Stack] | None:
    """The images that were packed under a key; None if there are none, or they are damaged."""
    path = cache_folder() / f"{key}.pack"
    try:
        pack: Pack = read_values(path.with_suffix(".json"), Pack)
        if path.stat().st_size == math.prod(pack.shape) and crc_of(path) == pack.crc:
            for used in (path, path.with_suffix(".json")):
                with contextlib.suppress(OSError):
                    os.utime(used)
            return pack, stack_of(path, pack.shape)
    except (OSError, DamagedError):  # whatever it is: they can be made again
        pass
    return None


def write_pack(key: str, parts: Iterable[np.ndarray], about: Callable[[], tuple[tuple[int, ...], dict[str, Any]]]) -> None:
    """Pack images, a few at a time.

    Args:
        key: that they will be found under.
        parts: uint8, one after the other.
        about: once all are written: their shape, and what else is known of them, as plain values.

    Raises:
        OSError: the cache cannot be written.
    """
    path, crc = cache_folder() / f"{key}.pack", 0

    def written() -> Iterator[memoryview]:
        nonlocal crc
        for part in parts:
            values = np.ascontiguousarray(part)
            crc = zlib.crc32(values.data, crc)
            yield values.data

    path.parent.mkdir(parents=True, exist_ok=True)
    write_parts(path, written())
    shape, more = about()
    write_values(path.with_suffix(".json"), asdict(Pack(shape, crc, more)))


def drop_others(key: str, part: str) -> None:
    """Remove what was packed of the same folder when it was another, and nobody has used for a week.

    Args:
        key: of what is packed now.
        part: of it: the folder's name, a dash, and how the folder is.
    """
    old = time.time() - WEEK
    place, dash, _ = part.partition("-")
    before, _, after = key.partition(part)
    for path in cache_folder().glob(f"{before}{place}{dash}*{after}.*"):
        with contextlib.suppress(OSError):
            if path.stem != key and path.stat().st_mtime < old:
                path.unlink()


@contextlib.contextmanager
def only_one(key: str) -> Iterator[None]:
    """Let one process of a machine at a time come here; the others wait, and find what it has made."""
    path = cache_folder() / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while True:
            try:
                lock_if_possible(file.fileno())
                break
            except BlockingIOError:
                time.sleep(WAIT)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def stack_of(path: Path, shape: tuple[int, ...]) -> Stack:
    """Images of a file that holds nothing but their bytes, none of which stays in memory."""

    def read(which: Any) -> torch.Tensor:
        with naming(path):
            return torch.from_numpy(np.array(np.memmap(path, np.uint8, "r", shape=shape)[which]))

    return Stack(read, shape[0], shape[1:], torch.uint8)


def crc_of(path: Path) -> int:
    """The checksum of a file of any size."""
    found = 0
    with naming(path), path.open("rb") as file:
        while part := file.read(PART):
            found = zlib.crc32(part, found)
    return found
