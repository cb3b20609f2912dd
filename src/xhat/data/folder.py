"""A folder of image files, of any size and mode, with or without a sub-folder per class."""

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from xhat.budgets import require_memory
from xhat.data.files import list_images
from xhat.data.images import Found, Images
from xhat.data.picture import FileError, Head, read_head, read_pixels, read_range
from xhat.data.scale import EIGHT_BITS, Range, scale_of
from xhat.data.wording import counted, some
from xhat.errors import DataError

LARGEST_DEFAULT = 64
T = TypeVar("T")
R = TypeVar("R")


def load_folder(root: Path, size: int | None = None) -> Images:
    """All image files below a folder; the classes are its sub-folders, if every image lies in one.

    Args:
        root: the folder.
        size: side of the result; None is `default_side`.

    Raises:
        DataError: no images, or files that cannot be read, all of them by name.
    """
    listing = list_images(root)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        heads, failed = _each(pool, read_head, listing.paths)
        deep = [head for head in heads if any(page.deep for page in head.pages)]
        ranges, unread = _each(pool, read_range, deep)
        scale = _scale(ranges)
        side = size or default_side([min(page.size) for head in heads for page in head.pages] or [LARGEST_DEFAULT])
        count = sum(len(head.pages) for head in heads)
        require_memory(count * 3 * side**2, f"{count:,} images of {side}x{side}", "choose a smaller image_size")
        whole = {head.path for head in heads} - {error.path for error in unread}
        arrays, damaged = _each(pool, partial(read_pixels, side=side, scale=scale), [h for h in heads if h.path in whole])
    _refuse(root, [*failed, *unread, *damaged], len(listing.paths))
    images = [array for of_file in arrays for array in of_file]
    channels = max(len(array) for array in images)  # a folder stays grey if no pixel of it has a colour
    pixels = torch.from_numpy(np.stack([np.broadcast_to(array, (channels, side, side)) for array in images]))
    labels, names, unlabelled = _classes(root, heads)
    notes = [*listing.notes, *_of_frames(root, heads), *_of_size(root, heads, side), *_of_depth(root, heads, len(deep), scale)]
    if names and listing.empty:
        notes.append(f"{root}: no class, without images: {some(listing.empty)}")
    resized = sum(page.size != (side, side) for head in heads for page in head.pages)
    found = Found(scale=scale, resized=resized, unlabelled=unlabelled, notes=tuple(notes))
    return Images(pixels, labels, len(names), str(root), names, found)


def default_side(sides: Sequence[int]) -> int:
    """The smallest of the shorter sides, at most 64, rounded down to a multiple of 4.

    Those below half of the median do not count: one tracking pixel would make all images of a folder tiny.
    """
    capped = sorted(min(LARGEST_DEFAULT, side) for side in sides)
    least = next(side for side in capped if 2 * side >= statistics.median(capped))
    return max(4, least // 4 * 4)


def _each(pool: ThreadPoolExecutor, read: Callable[[T], R], items: Iterable[T]) -> tuple[list[R], list[FileError]]:
    """What was read, and the files that could not be."""

    def tried(item: T) -> R | FileError:
        try:
            return read(item)
        except FileError as error:
            return error

    results = list(pool.map(tried, items))
    return [r for r in results if not isinstance(r, FileError)], [r for r in results if isinstance(r, FileError)]


def _refuse(root: Path, failed: list[FileError], count: int) -> None:
    """All files that cannot be read, in one go."""
    unique = {error.path: error for error in failed}
    if len(unique) == 1:
        raise failed[0]
    if unique:
        told = [f"{path.relative_to(root)} {error.reason}" for path, error in unique.items()]
        raise DataError(f"{root}: {len(unique)} of {count} image files cannot be used: {some(told)}: remove or replace them")


def _scale(ranges: list[tuple[float, float, bool]]) -> Range:
    """One scale for all files above 8 bits: each on a scale of its own would lose what tells them apart."""
    if not ranges:
        return EIGHT_BITS
    return scale_of(min(r[0] for r in ranges), max(r[1] for r in ranges), all(r[2] for r in ranges))


def _classes(root: Path, heads: list[Head]) -> tuple[torch.Tensor | None, tuple[str, ...], str]:
    """Labels (N,) and names of the sub-folders, or why there are none."""
    below = [head.path.relative_to(root).parts for head in heads]
    loose = ["/".join(parts) for parts in below if len(parts) == 1]
    names = sorted({parts[0] for parts in below})
    if loose and len(loose) < len(heads):
        return None, (), f"{len(loose):,} of {len(heads):,} files outside the sub-folders: {some(loose)}"
    if loose or len(names) < 2:
        return None, (), "two or more sub-folders, one per class, would give labels"
    number = {name: k for k, name in enumerate(names)}
    labels = [number[parts[0]] for parts, head in zip(below, heads, strict=True) for _ in head.pages]
    return torch.tensor(labels), tuple(name.encode(errors="replace").decode() for name in names), ""


def _of_frames(root: Path, heads: list[Head]) -> list[str]:
    """What is read of files that hold several images."""
    animated = [head.path.name for head in heads if head.frames]
    paged, pages = [head for head in heads if len(head.pages) > 1], sum(len(h.pages) for h in heads if len(h.pages) > 1)
    previews = sum(head.previews for head in heads)
    notes = (
        [f"{root}: of {counted(len(animated), 'animated file')} the first frame is read: {some(animated)}"] if animated else []
    )
    notes += [f"{root}: each page of {counted(len(paged), 'TIFF file')} is an image: {pages:,} together"] if paged else []
    notes += (
        [f"{root}: left out: {counted(previews, 'TIFF page')} of another size than the first of the file"] if previews else []
    )
    return notes


def _of_size(root: Path, heads: list[Head], side: int) -> list[str]:
    small = [head.path.name for head in heads if any(min(page.size) < side for page in head.pages)]
    if not small:
        return []
    return [f"{root}: smaller than {side}x{side}, enlarged: {len(small):,} of {len(heads):,} files: {some(small)}"]


def _of_depth(root: Path, heads: list[Head], deep: int, scale: Range) -> list[str]:
    if not deep or deep == len(heads):
        return []
    few = f"more than 8 bits in {deep:,} of {len(heads):,} files"
    return [f"{root}: {few}: their {scale[0]:g} to {scale[1]:g} is taken for the 0 to 255 of the others"]
