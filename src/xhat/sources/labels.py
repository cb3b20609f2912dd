"""Labels of a file of their own."""

import torch
from torch import Tensor

from xhat.data.labels import UnclearLabelsError, class_values, numbered
from xhat.errors import DataError
from xhat.sources.values import values_of_labels


def labels_of(file: str, count: int) -> tuple[Tensor, int, tuple[str, ...]]:
    """Class numbers (N,) of a .npy, how many classes there are, and their names.

    Raises:
        DataError: it has not one for each of `count` samples.
    """
    values = values_of_labels(file)
    try:
        labels, classes, names = numbered(class_values(values, count, file))
    except UnclearLabelsError as error:
        raise DataError(f"{file}: {error}") from None
    return labels.to(torch.int64), classes, names
