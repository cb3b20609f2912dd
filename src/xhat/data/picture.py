"""One image file: its pages, its range of values, its pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xhat.data.scale import Range, to_pixels
from xhat.data.size import Size
from xhat.errors import DataError

MOST_PIXELS = 100_000_000
"""Of one image: decoded, and on a white ground, it takes a gigabyte."""
GREY = {"1", "L", "LA", "La"}
"""Modes of Pillow that have no colour."""


class FileError(DataError):
    """An image file that cannot be read, and why."""

    def __init__(self, path: Path, reason: str, way_out: str) -> None:
        super().__init__(f"{path} {reason}: {way_out}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Page:
    """One image of a file: its number there, width and height, whether its values are more than 8 bits, whether it is grey."""

    number: int
    size: tuple[int, int]
    deep: bool
    grey: bool


@dataclass(frozen=True)
class Head:
    """What is known of a file before its pixels are read.

    Attributes:
        path: the file.
        pages: its images; more than one only of a TIFF.
        frames: whether it is animated, so that only the first frame is read.
        previews: pages of a TIFF of another size than its first, which are not read.
    """

    path: Path
    pages: tuple[Page, ...]
    frames: bool
    previews: int


def read_head(path: Path) -> Head:
    """Pages and sizes of a file.

    Raises:
        FileError: it cannot be read.
    """
    with opened_image(path) as image:
        if image.mode == "LAB":
            raise FileError(path, "has the colour mode LAB, which is not read", "convert it to RGB")
        if image.width * image.height > MOST_PIXELS:
            raise FileError(path, f"has {image.width * image.height:,} pixels, more than {MOST_PIXELS:,}", "make it smaller")
        if image.format != "TIFF":
            frames = image.format not in ("MPO", "PSD") and bool(getattr(image, "is_animated", False))
            return Head(path, (_page(image, 0),), frames, 0)
        pages = [_page(image, k) for k in range(getattr(image, "n_frames", 1))]
        same = tuple(p for p in pages if p.size == pages[0].size)
        return Head(path, same, False, len(pages) - len(same))


def read_range(head: Head) -> tuple[float, float, bool]:
    """Lowest and highest value of the pages with more than 8 bits, and whether they are whole numbers.

    Raises:
        FileError: it cannot be read, or holds infinite values.
    """
    with opened_image(head.path) as image:
        values = [_deep_values(image, page) for page in head.pages if page.deep]
        lowest, highest = float(min(v.min() for v in values)), float(max(v.max() for v in values))
        if not np.isfinite([lowest, highest]).all():
            raise FileError(head.path, "holds values that are not finite", "remove it or mend them")
        return lowest, highest, all(v.dtype.kind in "iu" for v in values)


def read_values(head: Head) -> np.ndarray:
    """The first page of a file as it is, (C, H, W): of 8 bits or more, grey or colour.

    Raises:
        FileError: it cannot be read.
    """
    page = head.pages[0]
    with opened_image(head.path) as image:
        if page.deep:
            return _deep_values(image, page)[None]
        turned = ImageOps.exif_transpose(image)
        values = np.asarray(turned.convert("L" if turned.mode in GREY else "RGB"))
        return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def read_pixels(head: Head, size: Size, scale: Range) -> list[np.ndarray]:
    """The pages of a file as uint8 (C, H, W), one channel where all are equal; `scale` is for those above 8 bits.

    Raises:
        FileError: it cannot be read.
    """
    with opened_image(head.path) as image:
        read = []
        for page in head.pages:
            if page.deep:
                turned = Image.fromarray(to_pixels(_deep_values(image, page), scale))
            else:
                image.seek(page.number)
                turned = ImageOps.exif_transpose(image)
            pixels = fit(turned, size, turned.mode in GREY)
            read.append(pixels[:1] if (pixels == pixels[:1]).all() else pixels)
        return read


def fit(image: Image.Image, size: Size, grey: bool) -> np.ndarray:
    """Resize until it is no smaller (bicubic, antialiased), crop the centre; transparency becomes white. uint8 (C, H, W)."""
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    image = ImageOps.fit(image.convert("L" if grey else "RGB"), size[::-1], Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None].copy() if grey else array.transpose(2, 0, 1).copy()


def _page(image: Image.Image, number: int) -> Page:
    image.seek(number)
    deep = image.mode.startswith("I") or image.mode == "F"
    return Page(number, image.size, deep, deep or image.mode in GREY)


def _deep_values(image: Image.Image, page: Page) -> np.ndarray:
    image.seek(page.number)
    turned = ImageOps.exif_transpose(image) if page.number == 0 else image
    values = np.asarray(turned)
    return values if values.dtype.kind in "iu" else values.astype(np.float64)


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """A file while it is read.

    Raises:
        FileError: it cannot be.
    """
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        raise FileError(path, "is not an image", "remove it or convert it") from None
    except Image.DecompressionBombError:
        raise FileError(path, "is too large an image to be decoded safely", "make it smaller") from None
    except PermissionError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", "allow reading it, or remove it") from None
    except OSError as error:
        if error.errno is not None:  # of the file system, and not of what the file holds
            raise FileError(path, f"cannot be read ({error.strerror})", "see whether the disk is well") from None
        raise FileError(path, "is cut short or damaged", "remove it or copy it again") from None
    except Exception:  # Pillow's decoders raise whatever a damaged file makes of their parsing
        raise FileError(path, "is cut short or damaged", "remove it or copy it again") from None
