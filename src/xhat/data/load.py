"""One config line chooses the data: `mnist`, a folder, an IDX file, .npz or .npy."""

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
from xhat.errors import DataError, DataNotFoundError

DARK = 15


def load(data: str, size: int | None = None, split: Split = "train") -> Images:
    """The images that a config's `data` names.

    Args:
        data: mnist or a path.
        size: side of square images; other images are resized and centre-cropped to it. None keeps them if square.
        split: of data with such parts: mnist, and .npz files with arrays such as train_images and test_images.

    Raises:
        DataNotFoundError: missing.
        DataError: empty, truncated or not images.
    """
    images = _read(data, size, split)
    if (most := int(images.pixels.max())) <= DARK:
        line = f"{images.name}: no pixel is above {most} of 255, the images are nearly black: multiply them"
        images = replace(images, found=replace(images.found, notes=(*images.found.notes, line)))
    return images


def load_shape(data: str, size: int | None, labels: Literal["auto"] | bool) -> DataShape:
    """The `data_shape` of the images that a config's `data` names; that of MNIST is known without reading it.

    Raises:
        DataError: as for `load` and `data_shape`.
    """
    if data == "mnist" and size is None:
        return DataShape(1, 28, 10 if labels else None)
    return data_shape(load(data, size), labels)


def _read(data: str, size: int | None, split: Split) -> Images:
    if size is not None and size < 4:
        raise DataError(f"image_size must be at least 4, got {size}")
    if not data:
        raise DataError("data is empty: give mnist, a folder of images, an IDX file, .npz or .npy")
    if data == "mnist":
        return _square(mnist(split), size)
    path = Path(data)
    path = path if path.exists() or not data.startswith("~") else path.expanduser()
    if not path.exists():
        source = " or bring it, with --use, if it is a data source of yours:" if data.endswith(")") else ":"
        raise DataNotFoundError(
            f'data "{data}" does not exist{source} give mnist, a folder of images, an IDX file, .npz or .npy'
        )
    if path.is_dir():
        return load_folder(path, size)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if path.suffix.lower() in readable_suffixes():
        raise DataError(f"{path} is one image: name the folder that it lies in")
    return _square(load_array(path, split) if path.suffix.lower() in (".npy", ".npz") else load_idx(path), size)


def _square(images: Images, size: int | None) -> Images:
    height, width = images.pixels.shape[2:]
    side = size or min(height, width)
    if (height, width) == (side, side):
        return images
    channels = images.pixels.shape[1]
    size_in_memory = len(images) * channels * side**2
    require_memory(size_in_memory, f"{len(images):,} images of {side}x{side}", "choose a smaller image_size")
    grey = channels == 1
    frames = (p[0] if grey else p.transpose(1, 2, 0) for p in images.pixels.numpy())
    fitted = np.stack([fit(Image.fromarray(np.ascontiguousarray(f)), side, grey) for f in frames])
    small = (
        (f"{images.name}: its images of {width}x{height} are enlarged to {side}x{side}",) if min(height, width) < side else ()
    )
    found = replace(images.found, resized=len(images), notes=(*images.found.notes, *small))
    return replace(images, pixels=torch.from_numpy(fitted), found=found)
