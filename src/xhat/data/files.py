"""Which files below a folder are images, and what is to be said of the others."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
    """

    paths: list[Path]
    empty: list[str]
    notes: tuple[str, ...]


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
    paths, broken, hidden, others = [], 0, 0, Counter[str]()
    for path in _files(root):
        suffix = path.suffix.lower()
        if any(_is_hidden(part) for part in path.relative_to(root).parts):
            hidden += suffix in readable_suffixes()
        elif suffix not in readable_suffixes():
            others[suffix] += suffix in _OTHER_IMAGES
        elif path.is_file():
            paths.append(path)
        else:
            broken += 1
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
    with_images = {p.relative_to(root).parts[0] for p in paths}
    empty = [f.name for f in sorted(root.iterdir()) if f.is_dir() and not _is_hidden(f.name) and f.name not in with_images]
    return Listing(sorted(paths), empty, tuple(notes))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder; a link to a folder that it lies in is left out."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(folder / entry.name, (*above, real))
        else:
            yield folder / entry.name
