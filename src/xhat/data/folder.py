"""A folder of image files, of any size and mode, with or without a sub-folder per class."""

import contextlib
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from xhat.budgets import cores, require_memory
from xhat.data.classes import classes_of
from xhat.data.files import Listing, list_images
from xhat.data.images import Found, Images
from xhat.data.pack import drop_others, only_one, pack_of, write_pack
from xhat.data.picture import FileError, Head, read_head, read_pixels, read_range
from xhat.data.scale import EIGHT_BITS, Range, scale_of
from xhat.data.size import Size, said, size_of
from xhat.data.stack import Samples, parts_of
from xhat.data.wording import counted, some
from xhat.errors import DamagedError, DataError
from xhat.files.cache import CACHE, cache_folder
from xhat.files.values import of_type

LARGEST_DEFAULT = 64
PACKED_FROM, PACKED_BYTES, VERSION = 4096, 256 * 2**20, 1
"""From so many files on, or so many bytes of pixels, a folder is decoded once, into the cache; how that is written."""
AT_A_TIME = 512
T = TypeVar("T")
R = TypeVar("R")
Say = Callable[[str], None]


@dataclass(frozen=True)
class About:
    """What is known of a folder's images beside their pixels.

    Attributes:
        labels: class of each; None without classes.
        names: of the classes.
        scale: see `Found`, as the rest.
        resized: see there.
        unlabelled: see there.
        notes: see there.
    """

    labels: list[int] | None
    names: tuple[str, ...]
    scale: Range
    resized: int
    unlabelled: str
    notes: tuple[str, ...]

    def images(self, root: Path, pixels: Samples) -> Images:
        """With their pixels."""
        found = Found(scale=self.scale, resized=self.resized, unlabelled=self.unlabelled, notes=self.notes)
        labels = None if self.labels is None else torch.tensor(self.labels)
        return Images(pixels, labels, len(self.names), str(root), self.names, found)


def load_folder(root: Path, size: int | Size | None = None, *, skip: bool = False, say: Say | None = None) -> Images:
    """All image files below a folder; the classes are its sub-folders, if every image lies in one.

    Many are decoded once, into the cache, where they are found again as long as nobody touches a file.

    Args:
        root: the folder.
        size: height and width of the result, or its side; None is `default_side`.
        skip: leave out files that cannot be read, and name them.
        say: is told what takes its time.

    Raises:
        DataError: no images, or files that cannot be read, all of them by name.
    """
    listing, wanted = list_images(root), size_of(size)
    many = len(listing.paths) >= PACKED_FROM
    key = f"images-{VERSION}-{listing.key}-{said(wanted) if wanted else 'own'}{'-skip' * skip}"
    if many and (found := _packed(root, key)) is not None:
        return found
    with ThreadPoolExecutor(cores()) as pool:
        folder = _Folder.of(root, listing, wanted, skip, pool)
        if not (many or folder.bytes > PACKED_BYTES):
            return folder.images()
        try:
            with only_one(key):
                if (found := _packed(root, key)) is None:
                    (say or (lambda line: None))(f"{root}: decoding {folder.count:,} images to {said(folder.size)}, once")
                    folder.pack(key)
                    drop_others(key, listing.key)
                    found = _packed(root, key)
        except OSError as error:
            return folder.images(
                f"{root}: kept in memory, the cache cannot be written ({error.strerror}): name another with {CACHE}"
            )
    if found is None:
        raise DataError(
            f"{root}: what was written to the cache {cache_folder()} is not what was read: name another with {CACHE}"
        )
    return found


def default_side(sides: Sequence[int]) -> int:
    """The smallest of the shorter sides, at most 64, rounded down to a multiple of 4.

    Those below half of the median do not count: one tracking pixel would make all images of a folder tiny.
    """
    capped = sorted(min(LARGEST_DEFAULT, side) for side in sides)
    least = next(side for side in capped if 2 * side >= statistics.median(capped))
    return max(4, least // 4 * 4)


def _packed(root: Path, key: str) -> Images | None:
    """The images that were packed under a key."""
    with contextlib.suppress(DamagedError):
        if (found := pack_of(key)) is not None:
            about: About = of_type(found[0].about, About)
            return about.images(root, found[1])
    return None


@dataclass
class _Folder:
    """Image files whose pixels are not read yet.

    Attributes:
        root: the folder.
        listing: of its files.
        heads: of those that could be opened.
        failed: the others.
        deep: how many have more than 8 bits.
        scale: of those.
        size: height and width that all get.
        skip: whether to leave out what cannot be read.
        pool: threads to read with.
        whole: heads of files whose pixels were read.
        coloured: whether any of these has a colour.
    """

    root: Path
    listing: Listing
    heads: list[Head]
    failed: list[FileError]
    deep: int
    scale: Range
    size: Size
    skip: bool
    pool: ThreadPoolExecutor
    whole: list[Head] = field(default_factory=list)
    coloured: bool = False

    @classmethod
    def of(cls, root: Path, listing: Listing, size: Size | None, skip: bool, pool: ThreadPoolExecutor) -> "_Folder":
        heads, failed = _each(pool, read_head, listing.paths)
        deep = [head for head in heads if any(page.deep for page in head.pages)]
        ranges, unread = _each(pool, read_range, deep)
        lost = {error.path for error in unread}
        side = default_side([min(page.size) for head in heads for page in head.pages] or [LARGEST_DEFAULT])
        heads = [head for head in heads if head.path not in lost]
        return cls(root, listing, heads, [*failed, *unread], len(deep), _scale(ranges), size or (side, side), skip, pool)

    @property
    def count(self) -> int:
        """Of images that there may be."""
        return sum(len(head.pages) for head in self.heads)

    @property
    def channels(self) -> int:
        """That have room for all of them: grey files stay grey."""
        return 1 if all(page.grey for head in self.heads for page in head.pages) else 3

    @property
    def bytes(self) -> int:
        """That all of them take."""
        return self.count * self.channels * math.prod(self.size)

    def parts(self) -> Iterator[np.ndarray]:
        """Their pixels (n, channels, H, W), some files at a time.

        Raises:
            DataError: at the end, if files cannot be read and are not to be left out.
        """
        read = partial(read_pixels, size=self.size, scale=self.scale)
        channels, self.whole, self.coloured = self.channels, [], False
        for first in range(0, len(self.heads), AT_A_TIME):
            some = self.heads[first : first + AT_A_TIME]
            arrays, damaged = _each(self.pool, read, some)
            self.failed += damaged
            lost = {error.path for error in damaged}
            self.whole += [head for head in some if head.path not in lost]
            images = [array for of_file in arrays for array in of_file]
            self.coloured |= any(len(array) > 1 for array in images)
            if images:
                yield np.stack([np.broadcast_to(array, (channels, *self.size)) for array in images])
        if self.failed and not self.skip:
            _refuse(self.root, self.failed, len(self.listing.paths))
        if not self.whole:
            raise DataError(f"{self.root}: none of its {len(self.listing.paths):,} image files can be read")

    def images(self, note: str = "") -> Images:
        """All of them in memory."""
        require_memory(self.bytes, f"{self.count:,} images of {said(self.size)}", "choose a smaller image_size")
        pixels, count = np.empty((self.count, self.channels, *self.size), np.uint8), 0
        for part in self.parts():
            pixels[count : count + len(part)] = part
            count += len(part)
        pixels = pixels[:count] if self.coloured else pixels[:count, :1].copy()  # grey if no pixel of it has a colour
        return self.about(note).images(self.root, torch.from_numpy(pixels))

    def pack(self, key: str) -> None:
        """All of them into the cache.

        Raises:
            OSError: it cannot be written.
        """
        first = self.channels

        def about() -> tuple[tuple[int, ...], dict[str, Any]]:
            count = sum(len(head.pages) for head in self.whole)
            return (count, first, *self.size), asdict(self.about())

        write_pack(key, self.parts(), about)
        if first > 1 and not self.coloured and (found := pack_of(key)) is not None:
            pack, stack = found
            shape = (pack.shape[0], 1, *pack.shape[2:])
            write_pack(key, (part[:, :1].numpy() for part in parts_of(stack)), lambda: (shape, pack.about))

    def about(self, note: str = "") -> About:
        """What is known of those that were read."""
        heads, root = self.whole, self.root
        labels, names, unlabelled = _classes(root, heads)
        notes = [*self.listing.notes, *_of_frames(root, heads), *_of_size(root, heads, self.size)]
        notes += [*_of_depth(root, heads, self.deep, self.scale), *([note] if note else [])]
        if names and self.listing.empty:
            notes.append(f"{root}: no class, without images: {some(self.listing.empty)}")
        if self.failed:
            told = [f"{error.path.relative_to(root)} {error.reason}" for error in self.failed]
            notes.append(f"{root}: left out: {counted(len(told), 'file')} that cannot be read: {some(told)}")
        resized = sum(page.size != self.size[::-1] for head in heads for page in head.pages)
        return About(labels, names, self.scale, resized, unlabelled, tuple(notes))


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
        told = some([f"{path.relative_to(root)} {error.reason}" for path, error in unique.items()])
        way_out = "remove or replace them, or leave them out with --skip_corrupt true"
        raise DataError(f"{root}: {len(unique)} of {count} image files cannot be used: {told}: {way_out}")


def _scale(ranges: list[tuple[float, float, bool]]) -> Range:
    """One scale for all files above 8 bits: each on a scale of its own would lose what tells them apart."""
    if not ranges:
        return EIGHT_BITS
    return scale_of(min(r[0] for r in ranges), max(r[1] for r in ranges), all(r[2] for r in ranges))


def _classes(root: Path, heads: list[Head]) -> tuple[list[int] | None, tuple[str, ...], str]:
    """Labels (N,) and names of the sub-folders, or why there are none."""
    found = classes_of(root, [head.path for head in heads])
    if isinstance(found, str):
        return None, (), found
    return [label for label, head in zip(found[0], heads, strict=True) for _ in head.pages], found[1], ""


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


def _of_size(root: Path, heads: list[Head], size: Size) -> list[str]:
    height, width = size
    small = [head.path.name for head in heads if any(p.size[0] < width or p.size[1] < height for p in head.pages)]
    if not small:
        return []
    return [f"{root}: smaller than {said(size)}, enlarged: {len(small):,} of {len(heads):,} files: {some(small)}"]


def _of_depth(root: Path, heads: list[Head], deep: int, scale: Range) -> list[str]:
    if not deep or deep == len(heads):
        return []
    few = f"more than 8 bits in {deep:,} of {len(heads):,} files"
    return [f"{root}: {few}: their {scale[0]:g} to {scale[1]:g} is taken for the 0 to 255 of the others"]
