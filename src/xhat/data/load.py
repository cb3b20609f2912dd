"""One config line chooses the data: `mnist`, a folder, an IDX file, .npz or .npy."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xhat.data.arrays import load_array
from xhat.data.folder import fit, load_folder
from xhat.data.idx import Split, load_idx, mnist
from xhat.data.images import DataError, Images, set_aside


def load(data: str, size: int | None = None, split: Split = "train") -> Images:
    """The images that a config's `data` names.

    Args:
        data: mnist or a path.
        size: side of square images; other images are resized and centre-cropped to it. None keeps them if square.
        split: of mnist; other data have one part only.

    Raises:
        DataError: missing, empty, truncated or not images.
    """
    if size is not None and size < 4:
        raise DataError(f"image_size must be at least 4, got {size}")
    if not data:
        raise DataError("data is empty: give mnist, a folder of images, an IDX file, .npz or .npy")
    if data == "mnist":
        return _square(mnist(split), size)
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(f'data "{data}" does not exist: give mnist, a folder of images, an IDX file, .npz or .npy')
    if path.is_dir():
        return load_folder(path, size)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    return _square(load_array(path) if path.suffix in (".npy", ".npz") else load_idx(path), size)


def load_parts(data: str, size: int | None = None, held_out: float = 0.0) -> tuple[Images, Images | None]:
    """The images to train on, and others of the same data to measure on: MNIST's test set, or a share that is set aside.

    Args:
        data: as for `load`.
        size: as for `load`.
        held_out: share to set aside; if it comes to too few images there are none, see `set_aside`.
    """
    images = load(data, size)
    return (images, load(data, size, "test")) if data == "mnist" else set_aside(images, held_out)


def _square(images: Images, size: int | None) -> Images:
    height, width = images.pixels.shape[2:]
    side = size or min(height, width)
    if (height, width) == (side, side):
        return images
    grey = images.pixels.shape[1] == 1
    frames = (p[0] if grey else p.transpose(1, 2, 0) for p in images.pixels.numpy())
    fitted = np.stack([fit(Image.fromarray(np.ascontiguousarray(f)), side, grey) for f in frames])
    return Images(torch.from_numpy(fitted), images.labels, images.classes, images.name)
