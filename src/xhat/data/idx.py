"""IDX files (MNIST's format), plain or gzipped, and the MNIST embedded in the package."""

import contextlib
import gzip
import math
import zlib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import torch

from xhat.budgets import require_memory
from xhat.data.images import Found, Images
from xhat.data.labels import class_values, missing_classes, numbered
from xhat.errors import DataError
from xhat.files.atomic import naming

Split = Literal["train", "test"]
PIECE = 2**20
"""Bytes that are unpacked at a time."""


class _Readable(Protocol):
    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...


def read_idx(path: _Readable, name: str) -> np.ndarray:
    """The uint8 array of an IDX file: two zero bytes, type 8, number of axes, big-endian lengths, values.

    Raises:
        DataError: not IDX, of another type than uint8, or cut short.
    """
    try:
        with naming(Path(name)), path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else contextlib.nullcontext(file) as unpacked:
                head, body, held = _unpacked(unpacked, name)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{name} is a gzip file cut short or damaged: copy it again") from None
    if held != body.size:
        has = f"{held:,}" if held < body.size else f"more than {body.size:,}"
        raise DataError(f"{name} is cut short, or of another size: its header announces {body.size:,} values, it holds {has}")
    return body.reshape(head)


def _unpacked(file: Any, name: str) -> tuple[tuple[int, ...], np.ndarray, int]:
    """The lengths that the header announces, so many values, and how many there were: at most one more is unpacked."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != 8 or not 1 <= start[3] <= 4:
        raise DataError(f"{name} is not an IDX file of unsigned bytes")
    lengths = file.read(4 * start[3])
    if len(lengths) < 4 * start[3]:
        raise DataError(f"{name} is cut short: its header announces {start[3]} axes")
    head = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
    size, held = math.prod(head), 0
    require_memory(size, f"{name} announces {size:,} values", "copy it again, or give a smaller file")
    values = np.zeros(size, np.uint8)  # not touched, and so not in memory, before something is read into it
    while held < size and (count := file.readinto(values[held : held + PIECE])):
        held += count
    return head, values, held + len(file.read(1))


def load_idx(path: Path) -> Images:
    """Images of an IDX file (N, H, W); labels from the file beside it whose name has labels-idx1 for images-idx3."""
    pixels = read_idx(path, str(path))
    if pixels.ndim != 3:
        raise DataError(f"{path} holds {pixels.ndim}-d data, not images (N, H, W)")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside != path and beside.exists():
        return _labelled(pixels, read_idx(beside, str(beside)), Found(), str(path))
    need = f"a file {beside.name} beside it" if beside != path else "a name with images-idx3, and a file labels-idx1 beside it,"
    return Images(
        torch.from_numpy(pixels).unsqueeze(1), None, 0, str(path), found=Found(unlabelled=f"{need} would give labels")
    )


def mnist(split: Split = "train") -> Images:
    """The complete MNIST: 60,000 training or 10,000 test images of 28x28, shipped in the package."""
    folder, stem = files("xhat.data") / "mnist", "train" if split == "train" else "t10k"
    pixels = read_idx(folder / f"{stem}-images-idx3-ubyte.gz", "mnist")
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", "mnist")
    return _labelled(pixels, labels, Found(part=split), f"mnist ({split})")


def _labelled(pixels: np.ndarray, labels: np.ndarray, found: Found, name: str) -> Images:
    if labels.shape != pixels.shape[:1]:
        raise DataError(f"{name}: {len(pixels)} images but {len(labels)} labels")
    values = class_values(labels, len(pixels), name)
    numbers, classes, names = numbered(values)
    found = replace(found, notes=missing_classes(values))
    return Images(torch.from_numpy(pixels).unsqueeze(1), numbers, classes, name, names, found)
