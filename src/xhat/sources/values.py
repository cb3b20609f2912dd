"""Values of files, read when they are asked for: NumPy files, raw bytes, a folder with a file for each sample."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.budgets import require_memory
from xhat.data.arrays import opened
from xhat.data.files import list_images
from xhat.data.picture import FileError, read_head, read_values
from xhat.data.stack import Stack
from xhat.errors import DataError, DataNotFoundError
from xhat.files.atomic import naming

KINDS = "iuf"
"""Of NumPy's types: whole numbers and floats."""
THREADS = 8


def values_of(
    file: str, *, array: str | None = None, dtype: str | None = None, shape: tuple[int, ...] | None = None
) -> tuple[Stack, str]:
    """Samples (N, ...) of a file or a folder, in the type that they have there, and a mark of the files.

    Args:
        file: .npy, .npz, raw bytes, or a folder of .npy or image files, each of them a sample.
        array: of an .npz, which one.
        dtype: of raw bytes, as NumPy names it, such as float32 or >f4.
        shape: of raw bytes, (N, ...); N may be -1.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: it holds no numbers, or is damaged.
    """
    path = Path(file)
    path = path if path.exists() or not file.startswith("~") else path.expanduser()
    if not path.exists():
        raise DataNotFoundError(
            f'data "{file}" does not exist: give a .npy, .npz or raw file, or a folder of .npy or image files'
        )
    if path.is_dir():
        return _of_folder(path)
    if dtype is not None or shape is not None:
        return _raw(path, dtype, shape), stamp(path)
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path} is no NumPy file: of raw bytes say what they are, dtype='float32', shape=(-1, 2, 64, 64)")
    arrays = opened(path)
    name = _named(path, arrays, array)
    if path.suffix.lower() == ".npz" or not isinstance(arrays[name], np.memmap):
        return _stack(path, lambda: arrays[name]), stamp(path)
    return _stack(path, lambda: opened(path)["images"]), stamp(path)


def stamp(path: Path) -> str:
    """A file as it is now: as long as nobody touches it, the same."""
    about = path.stat()
    return f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"


def _named(path: Path, arrays: Any, array: str | None) -> str:
    if array is None and len(arrays) == 1:
        return str(next(iter(arrays)))
    if array not in arrays:
        which = "which array?" if array is None else f"there is no array {array}:"
        raise DataError(f"{path}: {which} array='...' is one of {', '.join(arrays) or 'none'}")
    return str(array)


def _raw(path: Path, dtype: str | None, shape: tuple[int, ...] | None) -> Stack:
    if dtype is None or shape is None or len(shape) < 2:
        raise DataError(f"{path}: of raw bytes give both, dtype='float32' and shape=(-1, 2, 64, 64)")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise DataError(f"{path}: dtype '{dtype}' is none that NumPy knows, such as float32, >f4 or uint16") from None
    each, size = math.prod(shape[1:]) * kind.itemsize, path.stat().st_size
    if kind.kind not in KINDS or min(shape[1:]) < 1 or each < 1:
        raise DataError(f"{path}: dtype '{dtype}' and shape {shape} are no numbers of samples (N, ...)")
    count = size // each
    if count * each != size or shape[0] not in (-1, count):
        raise DataError(f"{path} holds {size:,} bytes, {size / each:g} samples of {each:,}: see to dtype and shape")

    def mapped() -> np.ndarray:
        with naming(path):
            return np.memmap(path, kind, "r", shape=(count, *shape[1:]))

    return _stack(path, mapped)


def _stack(path: Path, values: Callable[[], np.ndarray]) -> Stack:
    """Samples of an array that is opened anew for each reading: of a mapped file nothing stays in memory."""
    first = values()
    if first.dtype.kind not in KINDS:
        what = "complex: give real and imaginary part as two channels" if first.dtype.kind == "c" else str(first.dtype)
        raise DataError(f"{path}: its values are {what}: give numbers")
    if first.ndim < 2 or 0 in first.shape:
        raise DataError(f"{path}: its shape is {first.shape}: give (N, ...), a vector or more for each of N samples")
    kind = _of_torch(first.dtype)

    def read(which: Any) -> Tensor:
        return torch.from_numpy(np.array(values()[which], kind, order="C"))

    return Stack(read, len(first), first.shape[1:], torch.from_numpy(np.empty(0, kind)).dtype)


def _of_torch(kind: np.dtype[Any]) -> np.dtype[Any]:
    """The type as PyTorch has it: of this machine's byte order; float64 and whole numbers of 16 bits and more stay exact."""
    return kind.newbyteorder("=")


def _of_folder(root: Path) -> tuple[Stack, str]:
    """Each file a sample, all of one shape."""
    arrays = sorted(root.glob("*.npy"))
    if arrays:
        paths, mark = arrays, "\n".join(map(stamp, arrays))
        read: Callable[[Path], np.ndarray] = _array
    else:
        listing = list_images(root)
        paths, mark, read = listing.paths, listing.stamp, _image
    first = read(paths[0])
    if first.dtype.kind not in KINDS:
        raise DataError(f"{paths[0]}: its values are {first.dtype}: give numbers")
    require_memory(first.nbytes, f"{paths[0]}", "give smaller samples")

    def one(path: Path) -> np.ndarray:
        values = read(path)
        if values.shape != first.shape:
            raise DataError(f"{path} is {values.shape}, {paths[0].name} {first.shape}: all need one shape")
        return values.astype(first.dtype.newbyteorder("="), copy=False)

    def several(which: Any) -> Tensor:
        chosen = paths[which] if isinstance(which, slice) else [paths[k] for k in which.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.from_numpy(np.stack(list(pool.map(one, chosen))))

    return Stack(
        several, len(paths), first.shape, torch.from_numpy(first[..., :0].astype(first.dtype.newbyteorder("="))).dtype
    ), mark


def _array(path: Path) -> np.ndarray:
    return np.array(opened(path)["images"])


def _image(path: Path) -> np.ndarray:
    """(C, H, W), at the depth that the file has."""
    head = read_head(path)
    if len(head.pages) > 1:
        raise FileError(path, f"has {len(head.pages)} pages", "save each as a file, or all as a .npy")
    return read_values(head)


def values_of_labels(path: Path) -> np.ndarray:
    """The array of a .npy of labels.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: it cannot be read.
    """
    if not path.exists():
        raise DataNotFoundError(f'label "{path}" does not exist: give a .npy with a class for each sample')
    arrays = opened(path)
    return np.array(arrays[_named(path, arrays, None)])
