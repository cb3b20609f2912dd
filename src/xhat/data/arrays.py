"""NumPy files of images: .npy and .npz, uint8."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from xhat.data.images import DataError, Images


def load_array(path: Path) -> Images:
    """uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) of a .npy file, or of an .npz file beside optional labels.

    In an .npz the images are the array called images, x or x_train, or the only one with 3 or 4 axes; labels are called
    labels, y or y_train.

    Raises:
        DataError: unreadable, of another type, or of another shape.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"images": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{path} cannot be read as a NumPy file: it is damaged, cut short or holds Python objects") from None
    pixels = _find_images(path, arrays)
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: images must be uint8 0..255, not {pixels.dtype}: save (255 * x).round().astype('uint8')")
    given = pixels.shape
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise DataError(f"{path}: expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3, got {given}")
    labels = next((arrays[k] for k in ("labels", "y", "y_train") if k in arrays), None)
    if labels is not None:
        labels = labels.reshape(-1)
        if len(labels) != len(pixels) or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
            raise DataError(f"{path}: labels must be {len(pixels)} integers from 0, one per image")
    known = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    classes = 0 if known is None or not len(known) else int(known.max()) + 1
    return Images(torch.from_numpy(np.ascontiguousarray(pixels)), known, classes, str(path))


def _find_images(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    for key in ("images", "x", "x_train"):
        if key in arrays:
            return arrays[key]
    candidates = [a for a in arrays.values() if a.ndim in (3, 4)]
    if len(candidates) != 1:
        raise DataError(f"{path}: which array holds the images? Call it images (found: {', '.join(arrays) or 'nothing'})")
    return candidates[0]
