"""One config line chooses the data: `mnist`, a folder, an IDX file, .npz or .npy."""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from xhat.budgets import require_memory
from xhat.data.arrays import load_array
from xhat.data.files import readable_suffixes
from xhat.data.folder import load_folder
from xhat.data.idx import Split, load_idx, mnist
from xhat.data.images import Images
from xhat.data.picture import fit
from xhat.data.shape import DataShape, data_shape
from xhat.data.shared import once_per_machine
from xhat.data.size import Size, said, size_of
from xhat.data.stack import parts_of
from xhat.errors import DataError, DataNotFoundError
from xhat.registry import DATA

DARK = 15


def load(
    data: str,
    size: int | str | Size | None = None,
    split: Split = "train",
    *,
    skip: bool = False,
    say: Callable[[str], None] | None = None,
) -> Images:
    """The images that a config's `data` names.

    Args:
        data: mnist or a path.
        size: side of square images, or height and width; images are resized and centre-cropped to it. None keeps squares.
        split: of data with such parts: mnist, and .npz files with arrays such as train_images and test_images.
        skip: leave out files of a folder that cannot be read, and name them.
        say: is told what takes its time.

    Raises:
        DataNotFoundError: missing.
        DataError: empty, truncated or not images.
    """
    images = once_per_machine(lambda: _read(data, size_of(size), split, skip, say))
    if (most := images.extremes[1]) <= DARK:
        line = f"{images.name}: no pixel is above {most:.0f} of 255, the images are nearly black: multiply them"
        images = replace(images, found=replace(images.found, notes=(*images.found.notes, line)))
    return images


def load_shape(data: str, size: int | str | None, labels: Literal["auto"] | bool, *, skip: bool = False) -> DataShape:
    """The `data_shape` of the images that a config's `data` names; that of MNIST is known without reading it.

    Raises:
        DataError: as for `load` and `data_shape`.
    """
    if data == "mnist" and size is None:
        return DataShape(1, 28, 10 if labels else None)
    return data_shape(load(data, size, skip=skip), labels)


def _read(data: str, size: Size | None, split: Split, skip: bool, say: Callable[[str], None] | None) -> Images:
    if not data:
        raise DataError("data is empty: give mnist, a folder of images, an IDX file, .npz or .npy")
    if data == "mnist":
        return _fitted(mnist(split), size)
    path = Path(data)
    path = path if path.exists() or not data.startswith("~") else path.expanduser()
    if not path.exists():
        close = difflib.get_close_matches(data.partition("(")[0].strip().lower(), DATA, n=1)
        meant = f" (did you mean {close[0]}(...)?)" if close and data.endswith(")") else ""
        source = f"{meant} or bring it, with --use, if it is a data source of yours:" if data.endswith(")") else ":"
        raise DataNotFoundError(
            f'data "{data}" does not exist{source} give mnist, a folder of images, an IDX file, .npz or .npy'
        )
    if path.is_dir():
        return load_folder(path, size, skip=skip, say=say)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if path.suffix.lower() in readable_suffixes():
        raise DataError(f"{path} is one image: name the folder that it lies in")
    return _fitted(load_array(path, split) if path.suffix.lower() in (".npy", ".npz") else load_idx(path), size)


def _fitted(images: Images, size: Size | None) -> Images:
    """In this size, by default squares: what has it already is not touched."""
    height, width = images.pixels.shape[2:]
    wanted = size or (min(height, width),) * 2
    if (height, width) == wanted:
        return images
    channels, count = images.pixels.shape[1], len(images)
    require_memory(count * channels * math.prod(wanted), f"{count:,} images of {said(wanted)}", "choose a smaller image_size")
    fitted, grey, first = torch.empty((count, channels, *wanted), dtype=torch.uint8), channels == 1, 0
    for part in parts_of(images.pixels):
        for image in part.numpy():
            frame = Image.fromarray(np.ascontiguousarray(image[0] if grey else image.transpose(1, 2, 0)))
            fitted[first] = torch.from_numpy(fit(frame, wanted, grey))
            first += 1
    small = height < wanted[0] or width < wanted[1]
    enlarged = (f"{images.name}: its images of {width}x{height} are enlarged to {said(wanted)}",) * small
    found = replace(images.found, resized=count, notes=(*images.found.notes, *enlarged))
    return replace(images, pixels=fitted, found=found)
