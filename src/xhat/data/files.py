"""Which files below a folder are images, and what is to be said of the others."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from xhat.data.wording import counted
from xhat.errors import DataError

_NO_PIXELS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}  # Pillow knows these formats, and needs other programs to read them
_OTHER_IMAGES = {
    *(
        ".avif",
        ".heic",
        ".heif",
        ".jxl",
        ".svg",
        ".svgz",
        ".pdf",
        ".eps",
        ".ps",
        ".wmf",
        ".emf",
        ".xcf",
        ".psb",
        ".exr",
        ".hdr",
    ),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dcm", ".nii", ".mha", ".npy", ".npz"),
}
_OF_SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        paths: the image files, sorted.
        empty: sub-folders of the folder itself without an image.
        notes: one line each about what is left out.
        stamp: a checksum of names, sizes and times of the files, wherever the folder is.
        key: of this folder here as it is now, its own name first: other files, with the names, sizes and times of these, have
            another.
    """

    paths: list[Path]
    empty: list[str]
    notes: tuple[str, ...]
    stamp: str
    key: str


@lru_cache
def readable_suffixes() -> frozenset[str]:
    """Suffixes of the formats that Pillow reads here, lower case."""
    known = Image.registered_extensions()
    return frozenset(s.lower() for s, name in known.items() if name in Image.OPEN and name not in _NO_PIXELS)


def list_images(root: Path) -> Listing:
    """The image files below a folder; links are followed, but not in circles; hidden files and folders are left out.

    Raises:
        DataError: there are none.
    """
    found, broken, hidden, others = list[tuple[tuple[str, ...], int, int]](), 0, 0, Counter[str]()
    mine = dict[tuple[str, ...], tuple[int, int]]()
    for parts, entry in _files(str(root)):
        suffix = os.path.splitext(entry.name)[1].lower()
        if any(map(_is_hidden, parts)):
            hidden += suffix in readable_suffixes()
        elif suffix not in readable_suffixes():
            others[suffix] += suffix in _OTHER_IMAGES
        elif entry.is_file():
            about = entry.stat()
            found.append((parts, about.st_size, about.st_mtime_ns))
            mine[parts] = (about.st_ino, about.st_ctime_ns)
        else:
            broken += 1
    found.sort()
    paths = [root.joinpath(*parts) for parts, _, _ in found]
    kinds = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common() if n)
    if not paths:
        raise DataError(
            f"{root} holds no image files that can be read (.png, .jpg, .webp, .tif, ...)"
            + (f", but {kinds}: convert them" if kinds else "")
            + (f", but {hidden} hidden" if hidden else "")
            + (f", but {counted(broken, 'link')} to files that are not there" if broken else "")
        )
    notes = [f"{root}: left out: {kinds} (kinds that are not read: convert them)"] if kinds else []
    notes += [f"{root}: left out: {counted(hidden, 'image file')}, hidden or in hidden folders"] if hidden else []
    notes += [f"{root}: left out: {counted(broken, 'link')} to files that are not there"] if broken else []
    with_images = {parts[0] for parts, _, _ in found}
    empty = [f.name for f in sorted(root.iterdir()) if f.is_dir() and not _is_hidden(f.name) and f.name not in with_images]
    stamp = hashlib.sha256(repr(found).encode(errors="surrogateescape")).hexdigest()
    place = os.path.realpath(root).encode(errors="surrogateescape")
    own = hashlib.sha256(stamp.encode() + place + repr([mine[parts] for parts, _, _ in found]).encode()).hexdigest()
    return Listing(paths, empty, tuple(notes), stamp, f"{hashlib.sha256(place).hexdigest()[:16]}-{own[:32]}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _files(folder: str, below: tuple[str, ...] = (), above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All files below a folder, each with the names on the way to it; a link to a folder that it lies in is left out."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, (*below, entry.name), (*above, real))
            else:
                yield (*below, entry.name), entry
