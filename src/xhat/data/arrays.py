"""NumPy files of images: .npy and .npz."""

import contextlib
import errno
import math
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from xhat.budgets import GIB, require_memory
from xhat.data.images import Found, Images
from xhat.data.labels import UnclearLabelsError, class_values, missing_classes, numbered
from xhat.data.scale import EIGHT_BITS, Range, how_to_save, scale_of, to_pixels
from xhat.data.stack import Samples, Stack, view_of
from xhat.data.wording import counted
from xhat.errors import BudgetError, DataError
from xhat.files.atomic import naming
from xhat.files.stamp import require_unchanged, stamp

T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]
IMAGES, LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets")
PARTS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
MOST_PACKED, MOST_RATIO = 2 * GIB, 100
"""An .npz that is larger than the one, unpacked, and packed so many times, is no data set that somebody saved."""
ATTEMPTS = 20
_NEED = "an .npz with an array labels beside images would give labels"


def load_array(path: Path, split: Literal["train", "test"] = "train") -> Images:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) of a .npy file, or of an .npz file beside optional labels.

    In an .npz the images are the array called images or x, or the only one with 3 or 4 axes; labels are called labels or y.
    Where names say train, val or test (train_images, x_train) the part is chosen by `split`; "test" is val if there is no test.
    Pixels are uint8; whole numbers of other types are scaled by one factor, see `scale_of`.

    Raises:
        DataError: unreadable, of another type, or of another shape.
    """
    arrays = opened(path)
    training, part = _training(path, arrays)
    key = training
    if split == "test" and part == "train" and (test := _find(arrays, IMAGES, PARTS["test"])):
        key, part = test, "test"
    stacks = {k: arrays[k] for k in (_find(arrays, IMAGES, PARTS["test"]), training, key) if k}
    scale = _scale(path, stacks)
    frames, name = _channels_first(path, arrays[key]), f"{path} ({part})" if part else str(path)
    scale = EIGHT_BITS if frames.dtype == np.uint8 else scale
    pixels: Samples = _stack(path, arrays[key], scale)
    try:
        values, known = _values(path, arrays, key), _values(path, arrays, training)
    except UnclearLabelsError as error:
        return Images(pixels, None, 0, name, found=Found(part, scale, unlabelled=str(error)))
    if values is None or known is None:
        return Images(pixels, None, 0, name, found=Found(part, scale, unlabelled=_NEED))
    notes = missing_classes(known)
    if not (trained := np.isin(values, known)).any():
        raise DataError(f"{name}: no image is of a class of the training part: mend its labels, or take it out of the file")
    if not trained.all():
        notes += (
            f"{name}: left out: {counted(int((~trained).sum()), 'image')} of classes that the training part does not have",
        )
        pixels, values = view_of(pixels, torch.from_numpy(trained.nonzero()[0])), values[trained]
    _, classes, names = numbered(known)
    labels = torch.from_numpy(np.searchsorted(np.unique(known), values).astype(np.int64))
    return Images(pixels, labels, classes, name, names, Found(part, scale, notes=notes))


def opened(path: Path) -> Arrays:
    """The arrays of a file by name, "images" of a .npy, which is mapped.

    Raises:
        DataError: it is damaged, or holds Python objects.
        BudgetError: it unpacks to more than there is room for.
    """
    try:
        with naming(path):
            _require_room(path)
            loaded = _mapped(path) if not zipfile.is_zipfile(path) else np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"images": loaded}
            return {k: _despite_threads(partial(loaded.__getitem__, k)) for k in loaded.files}
    except OSError as error:
        if error.errno not in (
            None,
            errno.EINVAL,
        ):  # of the file system, and not of what the file holds: places before its start
            raise
        raise DataError(f"{path} cannot be read as a NumPy file: it is damaged or cut short") from None
    except (BudgetError, MemoryError):  # nor does a lack of memory say anything of what the file holds
        raise
    except Exception:  # NumPy and zipfile raise whatever a damaged header makes of their parsers
        raise DataError(f"{path} cannot be read as a NumPy file: it is damaged, cut short or holds Python objects") from None


def _require_room(path: Path) -> None:
    """Refuse files that unpack, or say that they do, to more than there is room for, before they do.

    Raises:
        BudgetError: they do.
        ValueError or EOFError: a header is none, or announces another size than the file has.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            _require_announced(file, path.stat().st_size)
        return
    with zipfile.ZipFile(path) as packed:
        members = packed.infolist()
        size = sum(member.file_size for member in members)
        require_memory(2 * size, f"{path} holds {len(members)} arrays", "keep fewer or smaller ones in it")
        if size > MOST_PACKED and size > MOST_RATIO * path.stat().st_size:
            raise BudgetError(f"{path} unpacks to {size / GIB:,.1f} GiB, {MOST_RATIO} times its size: save it with np.savez")
        for member in members:
            with packed.open(member) as file:
                _require_announced(file, member.file_size)


def _require_announced(file: Any, size: int) -> None:
    """Refuse a .npy whose header announces another size than it has: memory would be taken for it."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    start = file.tell()
    shape, _, dtype = _despite_threads(lambda: (file.seek(start), read(file))[1])
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError("it is cut short")


def _training(path: Path, arrays: Arrays) -> tuple[str, Literal["", "train", "test"]]:
    """The key of the images to train on, and the part that they are."""
    if key := _find(arrays, IMAGES):
        return key, ""
    if key := _find(arrays, IMAGES, PARTS["train"]):
        return key, "train"
    candidates = [k for k, a in arrays.items() if a.ndim in (3, 4)]
    if len(candidates) != 1:
        raise DataError(f"{path}: which array holds the images? Call it images (found: {', '.join(arrays) or 'nothing'})")
    return candidates[0], ""


def _find(arrays: Arrays, words: tuple[str, ...], parts: tuple[str, ...] = ("",)) -> str | None:
    """The key that is one of the words, with one of the parts before or after it."""
    lower = {key.lower(): key for key in reversed(list(arrays))}
    names = (name for part in parts for word in words for name in ((f"{part}_{word}", f"{word}_{part}") if part else (word,)))
    return next((lower[name] for name in names if name in lower), None)


def _values(path: Path, arrays: Arrays, images: str) -> np.ndarray | None:
    """The class of each image of the array `images`, from the labels of the same part; None without labels."""
    own = next((p for of in PARTS.values() for p in of if p in images.lower().split("_")), None)
    key = _find(arrays, LABELS, (own,) if own else ("", *PARTS["train"]))
    return None if key is None else class_values(arrays[key], len(arrays[images]), f"{path} ({key})")


def _scale(path: Path, stacks: Arrays) -> Range:
    """The values that become 0 and 255, the same for all parts of a file."""
    kinds = {array.dtype for array in stacks.values()}
    if kinds == {np.dtype(np.uint8)}:
        return EIGHT_BITS
    if kinds == {np.dtype(bool)}:
        return 0.0, 1.0
    filled = [array for array in stacks.values() if array.size]
    for array in filled:
        if array.dtype.kind not in "biuf":
            raise DataError(f"{path}: images must be uint8 0..255, not {array.dtype}")
        if array.dtype.kind == "f" or array.min() < 0:
            raise DataError(f"{path}: images must be uint8 0..255, not {array.dtype}: {how_to_save(array)}")
    return scale_of(0, max((int(array.max()) for array in filled), default=0), whole=True)


def _channels_first(path: Path, pixels: np.ndarray) -> np.ndarray:
    given = pixels.shape
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise DataError(f"{path}: expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3, got {given}")
    return pixels


def _stack(path: Path, array: np.ndarray, scale: Range) -> Stack:
    """Images of an array, made of its values as they are asked for: of a mapped file nothing stays in memory."""
    frames, mapped, before = _channels_first(path, array), isinstance(array, np.memmap), stamp(path)

    def read(which: Any) -> Tensor:
        values = frames
        if mapped:  # for this moment only: what was read is given back
            require_unchanged(path, before)
            values = _channels_first(path, _mapped(path))
        found = np.array(values[which], order="C")  # a copy, which no mapping is behind
        return torch.from_numpy(found if found.dtype == np.uint8 else to_pixels(found, scale))

    return Stack(read, len(frames), frames.shape[1:], torch.uint8, in_memory=not mapped)


def _mapped(path: Path) -> np.ndarray:
    """A .npy that is not read yet; one without values, which cannot be mapped, as it is."""
    try:
        found: np.ndarray = _despite_threads(lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        if "empty" not in str(error):
            raise
        found = np.load(path, allow_pickle=False)
    return found


def _despite_threads(parsed: Callable[[], T]) -> T:
    """What NumPy parses with Python's own parser, which fails now and then while another thread parses, too.

    The SystemError "AST constructor recursion depth mismatch" (python/cpython#106905, mended in 3.11.8 and 3.12.2) says nothing
    of the file. A file that brings about one of its own does so at each attempt.
    """
    for _ in range(ATTEMPTS):
        with contextlib.suppress(SystemError):
            return parsed()
    return parsed()
