"""A folder of image files, of any size and mode, with or without a sub-folder per class."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from xhat.data.images import DataError, Images

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
LARGEST_DEFAULT = 64
_GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}


def load_folder(root: Path, size: int | None = None) -> Images:
    """All image files below a folder; the classes are its sub-folders, if every image lies in one.

    Args:
        root: the folder.
        size: side of the result; None takes the smallest side found, at most 64, rounded down to a multiple of 4.

    Raises:
        DataError: no images, or a file that cannot be read, by name.
    """
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{root} holds no image files ({', '.join(sorted(SUFFIXES))})")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        heads = list(pool.map(_head, paths))
        grey = all(mode in _GREY for mode, _ in heads)
        side = size or max(4, min(LARGEST_DEFAULT, min(s for _, s in heads)) // 4 * 4)
        pixels = list(pool.map(lambda p: read_image(p, side, grey), paths))
    folders = [p.relative_to(root).parts[0] if len(p.relative_to(root).parts) > 1 else "" for p in paths]
    names = sorted(set(folders))
    labelled = "" not in names and len(names) > 1
    labels = torch.tensor([names.index(f) for f in folders]) if labelled else None
    return Images(torch.from_numpy(np.stack(pixels)), labels, len(names) if labelled else 0, str(root))


def read_image(path: Path, side: int, grey: bool) -> np.ndarray:
    """One file as uint8 (C, side, side), see `fit`."""
    with _open(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError):
            raise DataError(f"{path} is cut short or damaged: remove it or copy it again") from None
        return fit(ImageOps.exif_transpose(image), side, grey)


def fit(image: Image.Image, side: int, grey: bool) -> np.ndarray:
    """Resize the shorter side (bicubic, antialiased), crop the centre; transparency becomes white. uint8 (C, side, side)."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if values.max(initial=0) > 255 else 255
        image = Image.fromarray((values * (255 / top)).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    image = ImageOps.fit(image.convert("L" if grey else "RGB"), (side, side), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if grey else array.transpose(2, 0, 1).copy()


def _head(path: Path) -> tuple[str, int]:
    with _open(path) as image:
        return image.mode, min(image.size)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image: remove it or convert it") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path} is too large an image to be decoded safely: make it smaller") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
