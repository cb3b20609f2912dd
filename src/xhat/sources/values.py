"""Values of files, read when they are asked for: NumPy files, raw bytes, a folder with a file for each sample."""

import math
import re
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.data.arrays import opened
from xhat.data.files import list_images
from xhat.data.picture import FileError, read_head, read_values
from xhat.data.stack import Stack
from xhat.data.wording import counted, some
from xhat.errors import DataError, DataNotFoundError
from xhat.files.atomic import naming
from xhat.files.stamp import require_unchanged, stamp

KINDS, LARGEST = "iuf", 8
"""Of NumPy's types: whole numbers and floats, of so many bytes."""
THREADS = 8


@dataclass(frozen=True)
class Values:
    """Samples (N, ...) as they are in files.

    Attributes:
        stack: of them, in the type that they have there.
        notes: what was left out, one line each.
        left_out: how many.
    """

    stack: Stack
    notes: tuple[str, ...] = ()
    left_out: int = 0


def values_of(
    file: str,
    *,
    array: str | None = None,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
    skip: bool = False,
) -> Values:
    """Samples (N, ...) of a file or a folder.

    Args:
        file: .npy, .npz, raw bytes, or a folder of .npy or image files, each of them a sample, in the order of their numbers.
        array: of an .npz, which one.
        dtype: of raw bytes, as NumPy names it, such as float32 or >f4.
        shape: of raw bytes, (N, ...); N may be -1.
        skip: leave out files of a folder that cannot be read.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: it holds no numbers, or is damaged.
    """
    path = there(file)
    if path is None:
        what = "a .npy, .npz or raw file, or a folder of .npy or image files"
        raise DataNotFoundError(f'data "{file}" does not exist: give {what}')
    if path.is_dir():
        return _of_folder(path, skip=skip)
    if dtype is not None or shape is not None:
        return Values(_raw(path, dtype, shape))
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path} is no NumPy file: of raw bytes say what they are, dtype='float32', shape=(-1, 2, 64, 64)")
    arrays = opened(path)
    name = _named(path, arrays, array)
    if path.suffix.lower() == ".npz" or not isinstance(arrays[name], np.memmap):
        return Values(_stack(path, lambda: arrays[name]))
    return Values(_stack(path, lambda: opened(path)["images"]))


def there(file: str) -> Path | None:
    """The file or folder of a name that may begin with ~; None if there is none."""
    path = Path(file)
    path = path if path.exists() or not file.startswith("~") else path.expanduser()
    return path if path.exists() else None


def _named(path: Path, arrays: Any, array: str | None) -> str:
    if array is None and len(arrays) == 1:
        return str(next(iter(arrays)))
    if array not in arrays:
        which = "which array?" if array is None else f"there is no array {array}:"
        raise DataError(f"{path}: {which} array='...' is one of {', '.join(arrays) or 'none'}")
    return str(array)


def _raw(path: Path, dtype: str | None, shape: tuple[int, ...] | None) -> Stack:
    if path.open("rb").read(6) == b"\x93NUMPY" or zipfile.is_zipfile(path):
        raise DataError(f"{path} is a NumPy file, which says itself what it holds: leave dtype and shape out")
    if dtype is None or not isinstance(shape, tuple) or len(shape) < 2:
        raise DataError(f"{path}: of raw bytes give both, dtype='float32' and shape=(-1, 2, 64, 64)")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise DataError(f"{path}: dtype '{dtype}' is none that NumPy knows, such as float32, >f4 or uint16") from None
    each, size = math.prod(shape[1:]) * kind.itemsize, path.stat().st_size
    if min(shape[1:]) < 1 or each < 1:
        raise DataError(f"{path}: dtype '{dtype}' and shape {shape} are no numbers of samples (N, ...)")
    count = size // each
    if count * each != size or shape[0] not in (-1, count) or not count:
        raise DataError(f"{path} holds {size:,} bytes, {size / each:g} samples of {each:,}: see to dtype and shape")

    def mapped() -> np.ndarray:
        with naming(path):
            return np.memmap(path, kind, "r", shape=(count, *shape[1:]))

    return _stack(path, mapped)


def _stack(path: Path, values: Callable[[], np.ndarray]) -> Stack:
    """Samples of an array that is opened anew for each reading: of a mapped file nothing stays in memory."""
    first, before = values(), stamp(path)
    _require_numbers(path, first.dtype)
    if first.ndim < 2 or 0 in first.shape:
        raise DataError(f"{path}: its shape is {first.shape}: give (N, ...), a vector or more for each of N samples")
    kind, mapped = first.dtype.newbyteorder("="), isinstance(first, np.memmap)

    def read(which: Any) -> Tensor:
        if mapped:
            require_unchanged(path, before)
        return torch.from_numpy(np.array(values()[which], kind, order="C"))

    return Stack(read, len(first), first.shape[1:], torch.from_numpy(np.empty(0, kind)).dtype, in_memory=not mapped)


def _require_numbers(path: Path, kind: np.dtype[Any]) -> None:
    if kind.kind == "c":
        raise DataError(f"{path}: its values are complex: give real and imaginary part as two channels")
    if kind.kind not in KINDS or kind.itemsize > LARGEST:
        raise DataError(f"{path}: its values are {kind}: give whole numbers, or floats of at most 64 bits")


def _of_folder(root: Path, *, skip: bool) -> Values:
    """Each file a sample, all of one shape, in one type that holds all of theirs."""
    arrays = list(root.glob("*.npy"))
    paths = sorted(arrays or list_images(root).paths, key=_naturally)
    read, head = (_array, _head_of_array) if arrays else (_image, _head_of_image)
    lost, good, kinds = list[DataError](), list[Path](), set[np.dtype[Any]]()
    first: tuple[int, ...] = ()
    with ThreadPoolExecutor(THREADS) as pool:
        for path, found in zip(paths, pool.map(lambda p: _tried(head, p), paths), strict=True):
            if isinstance(found, DataError):
                lost.append(found)
                continue
            first = first or found[0]
            if found[0] != first:
                raise DataError(f"{path} is {found[0]}, {good[0].name} {first}: all need one shape")
            good.append(path)
            kinds.add(found[1])
    if not good or (lost and not skip):
        raise DataError(f"{lost[0]}{'; or leave it out with --skip_corrupt true' if good else ''}")
    if not arrays and len(kinds) > 1:
        raise DataError(f"{root} holds images of {' and '.join(sorted(map(str, kinds)))}: save all of them with the same bits")
    kind = np.result_type(*kinds).newbyteorder("=")
    if not first:
        raise DataError(f"{good[0]} holds one number: give a vector or more for each sample")

    def one(path: Path) -> np.ndarray:
        values = read(path)
        if values.shape != first:
            raise DataError(f"{path} is {values.shape}, {good[0].name} {first}: all need one shape")
        return values.astype(kind, copy=False)

    def several(which: Any) -> Tensor:
        chosen = good[which] if isinstance(which, slice) else [good[k] for k in which.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.from_numpy(np.stack(list(pool.map(one, chosen))))

    notes = (f"{root}: left out: {counted(len(lost), 'file')} that cannot be read: {some([str(e) for e in lost])}",)
    return Values(Stack(several, len(good), first, torch.from_numpy(np.empty(0, kind)).dtype), notes * bool(lost), len(lost))


def _naturally(path: Path) -> list[tuple[int, str]]:
    """s2 before s10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _tried(head: Callable[[Path], Any], path: Path) -> Any:
    try:
        return head(path)
    except DataError as error:
        return error


def _head_of_array(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    values = opened(path)["images"]
    _require_numbers(path, values.dtype)
    return values.shape, values.dtype


def _head_of_image(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    values = _image(path)
    return values.shape, values.dtype


def _array(path: Path) -> np.ndarray:
    return np.array(opened(path)["images"])


def _image(path: Path) -> np.ndarray:
    """(C, H, W), at the depth that the file has."""
    head = read_head(path)
    if len(head.pages) > 1:
        raise FileError(path, f"has {len(head.pages)} pages", "save each as a file, or all as a .npy")
    return read_values(head)


def values_of_labels(file: str) -> np.ndarray:
    """The array of a .npy of labels.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: it cannot be read.
    """
    path = there(file)
    if path is None:
        raise DataNotFoundError(f'label "{file}" does not exist: give a .npy with a class for each sample')
    if path.is_dir():
        raise DataError(f"label {path} is a folder: give a .npy with a class for each sample")
    arrays = opened(path)
    return np.array(arrays[_named(path, arrays, None)])
