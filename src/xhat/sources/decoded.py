"""Pictures as libraries hand them over, as pixels of one size."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from xhat.data.folder import default_side
from xhat.data.picture import GREY, fit
from xhat.data.size import Size
from xhat.errors import DataError


def picture_of(value: Any, what: str) -> Image.Image:
    """An image of what stands in a column: a picture of Pillow, its file's bytes, {"bytes": ...}, or an array (H, W[, C]).

    Args:
        value: see above.
        what: it is, for the error: "row 7 of train.parquet".

    Raises:
        DataError: it is none, or damaged.
    """
    try:
        if isinstance(value, Mapping):
            value = value.get("bytes") or _read(value["path"])
        if isinstance(value, bytes | bytearray | memoryview):
            value = Image.open(BytesIO(value))
        if isinstance(value, np.ndarray | list):
            value = Image.fromarray(np.asarray(value, np.uint8))
        value.load()
        if value.mode.startswith("I") or value.mode == "F":
            raise DataError(f"{what} has more than 8 bits: save the images as arrays, and read them with fields(...)")
        found: Image.Image = ImageOps.exif_transpose(value)
        return found
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes of their parsing
        raise DataError(f"{what} is no image, or damaged ({type(error).__name__})") from None


def pixels_of(picture: Image.Image, size: Size, channels: int) -> Tensor:
    """uint8 (C, H, W): resized until it is no smaller, the centre cropped."""
    return torch.from_numpy(fit(picture, size, channels == 1))


def those_that_can_be_read(rows: Iterable[Any], picture: Callable[[Any], Image.Image], *, skip: bool) -> list[Image.Image]:
    """The pictures of some rows.

    Raises:
        DataError: one cannot be read, and none may be left out; or all of them.
    """
    found, last = list[Image.Image](), DataError("there are no pictures")
    for row in rows:
        try:
            found.append(picture(row))
        except DataError as error:
            last = error
            if not skip:
                raise DataError(f"{error}; or leave it out with --skip_corrupt true") from None
    if not found:
        raise last
    return found


def shape_of_pictures(pictures: Sequence[Image.Image], size: Size | None) -> tuple[int, Size]:
    """Channels and size for images of which these are the first: 3 unless all are grey; the default of a folder."""
    channels = 1 if all(picture.mode in GREY for picture in pictures) else 3
    if size is None:
        side = default_side([min(picture.size) for picture in pictures])
        size = (side, side)
    return channels, size


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
