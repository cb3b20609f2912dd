"""What is measured of an image, as operators that are linear in it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from xhat.errors import DataError
from xhat.registry import OPERATORS


@OPERATORS.register
@dataclass(frozen=True)
class Hide:
    """A x = x, with 0 in a box of pixels: what is there is to be drawn.

    Args:
        rows: from (counted from 0) and to (not with it); None is all.
        columns: likewise.

    Raises:
        ValueError: an empty box.
    """

    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.rows is None and self.columns is None:
            raise ValueError("hide needs rows or columns, for example hide(rows=(8, 20)): all of an image would be hidden")
        for box in (self.rows, self.columns):
            if box is not None and not (len(box) == 2 and 0 <= box[0] < box[1]):
                raise ValueError(f"hide takes rows and columns as (first, one after the last), got {box}")

    def __call__(self, images: Tensor) -> Tensor:
        mask = torch.ones(images.shape[-2:], dtype=images.dtype, device=images.device)
        mask[slice(*(self.rows or (None,))), slice(*(self.columns or (None,)))] = 0
        return mask * images

    def measured(self, values: Tensor) -> Tensor:
        """Values y, of which those in the box are nobody's."""
        return self(values)


@OPERATORS.register
@dataclass(frozen=True)
class Shrink:
    """A x: means over squares of `factor` x `factor` pixels, an image with so many times fewer rows and columns.

    Raises:
        ValueError: a factor below 2; DataError: when called with an image that it does not divide.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"shrink makes an image smaller by 2 or more, got {self.factor}")

    def __call__(self, images: Tensor) -> Tensor:
        if any(side % self.factor for side in images.shape[-2:]):
            raise DataError(f"shrink({self.factor}) does not divide images {tuple(images.shape[-2:])}")
        return avg_pool2d(images, self.factor)


@OPERATORS.register
@dataclass(frozen=True)
class Blur:
    """A x: x convolved with a Gaussian of this standard deviation in pixels, cut off at three of them; mirrored at the edges.

    Raises:
        ValueError: a deviation that is not above 0; DataError: when called with an image smaller than the kernel's half.
    """

    std: float

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"blur has a standard deviation above 0 pixels, got {self.std}")

    def __call__(self, images: Tensor) -> Tensor:
        reach = math.ceil(3 * self.std)
        if reach >= min(images.shape[-2:]):
            raise DataError(f"blur({self.std:g}) reaches {reach} pixels, and the images are {tuple(images.shape[-2:])}")
        at = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-(at**2) / (2 * self.std**2))
        kernel = kernel / kernel.sum()
        flat = pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
        return conv2d(conv2d(flat, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1)).reshape(images.shape)
