"""Labels as they come, as class numbers 0..K-1 of classes that all have images."""

import numpy as np
import torch
from torch import Tensor

from xhat.errors import DataError


class UnclearLabelsError(ValueError):
    """Labels that name no single class for each image: they cannot be used, the images can."""


def class_values(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """One value for each image, int64 or text (N,): of labels (N,), (N, 1), one-hot (N, K), whole numbers of any type or text.

    Raises:
        DataError: another number of labels than of images.
        UnclearLabelsError: several labels for an image, fractions, or numbers below 0.
    """
    if labels.size == count:
        flat = labels.reshape(-1)
    elif labels.ndim == 2 and len(labels) == count and labels.dtype.kind in "biuf":
        flat = _of_one_hot(labels)
    elif labels.ndim == 0 or len(labels) != count:
        raise DataError(f"{name}: {count} images but labels {labels.shape}: give one label per image")
    else:
        raise UnclearLabelsError(f"its labels {labels.shape} are not one per image")
    return _whole(flat) if flat.dtype.kind in "biuf" else _text(flat)


def numbered(values: np.ndarray) -> tuple[Tensor, int, tuple[str, ...]]:
    """Class numbers (N,) int64, how many classes, and their names: () where the values are these numbers already."""
    found, numbers = np.unique(values, return_inverse=True)
    same = found.dtype.kind == "i" and np.array_equal(found, np.arange(len(found)))
    return torch.from_numpy(numbers.reshape(-1).astype(np.int64)), len(found), () if same else tuple(map(str, found.tolist()))


def missing_classes(values: np.ndarray) -> tuple[str, ...]:
    """One line, if numbers between the lowest and the highest label are no image's."""
    if values.dtype.kind != "i" or not len(values):
        return ()
    found = np.unique(values)
    gaps = int(found[-1] - found[0]) + 1 - len(found)
    if not gaps:
        return ()
    return (
        f"no image for {gaps:,} of the labels {found[0]} to {found[-1]}: the {len(found)} classes are those that images have",
    )


def _of_one_hot(labels: np.ndarray) -> np.ndarray:
    if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
        raise UnclearLabelsError(f"its labels {labels.shape} are not one-hot: some images have several classes, or none")
    return np.asarray(labels.argmax(1))


def _whole(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.round(labels))).all():
        raise UnclearLabelsError("its labels are no whole numbers")
    if len(labels) and labels.min() < 0:
        raise UnclearLabelsError(
            f"its labels go down to {int(labels.min())}: number the classes from 0, and leave unlabelled images out"
        )
    return labels.astype(np.int64)


def _text(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "U":
        return labels
    raise UnclearLabelsError(f"its labels are {labels.dtype}: give whole numbers or text")
