"""Penalties of a part of each image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.losses.penalties.base import DrawPenalty, Penalty
from xhat.losses.where import Where, masked, where_counted
from xhat.losses.where import masked_mean as over_own_area
from xhat.objective.draw import Draw
from xhat.tensors import image_mean, image_sum

__all__ = ["mask", "masked_mean"]

PerPixel = Callable[[Tensor], Tensor]


def mask(per_pixel: PerPixel, where: Tensor | str) -> Penalty | DrawPenalty:
    """mean over all pixels of where · per_pixel(images): grows with the mask's area, for "this much of the image is wrong".

    Args:
        per_pixel: images (B, C, H, W) -> a value per pixel, (B, C', H', W').
        where: what counts and how much, at least 0: (H', W'), (1, H', W') or (1|B, 1|C', H', W'); bool or float. The name of a
            mask in `draw.extra` is one that comes with the batch.

    Raises:
        ValueError: a negative mask, or one that does not fit the values (at the call).
    """
    return _OfBatch(per_pixel, masked(where)) if isinstance(where, str) else _Sum(per_pixel, where)


def masked_mean(per_pixel: PerPixel, where: Tensor | str) -> Penalty | DrawPenalty:
    """sum(where · per_pixel(images)) / sum(where) per image: the mean over the mask, whatever its area; 0 if it is empty.

    Args:
        per_pixel: images (B, C, H, W) -> a value per pixel, (B, C', H', W').
        where: as in `mask`.

    Raises:
        ValueError: as `mask`.
    """
    return _OfBatch(per_pixel, over_own_area(where)) if isinstance(where, str) else _Mean(per_pixel, where)


@dataclass(frozen=True)
class _OfBatch:
    """A function per pixel, and a mask that comes with the batch."""

    per_pixel: PerPixel
    where: Where

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        values = self.per_pixel(images)
        weight = self.where(draw, values)
        return image_mean(weight * where_counted(weight, values))


@dataclass(frozen=True, eq=False)
class _Masked:
    """A function per pixel, and what of it counts."""

    per_pixel: PerPixel
    where: Tensor

    def __post_init__(self) -> None:
        if not 2 <= self.where.ndim <= 4 or not bool((self.where >= 0).all()):
            raise ValueError("a mask has shape (H, W) or (1 or B, 1 or C, H, W), and values of at least 0")

    def _values(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The mask, as large as the values, and the values."""
        values = self.per_pixel(images)
        return _on(self.where, values), values


class _Sum(_Masked):
    def __call__(self, images: Tensor) -> Tensor:
        weight, values = self._values(images)
        return image_mean(weight * values)


class _Mean(_Masked):
    def __call__(self, images: Tensor) -> Tensor:
        weight, values = self._values(images)
        area = image_sum(weight)
        # an empty mask: 0/1 instead of 0/0, so that value and gradient are 0
        return image_sum(weight * values) / torch.where(area > 0, area, torch.ones_like(area))


def _on(where: Tensor, values: Tensor) -> Tensor:
    """A mask (H, W), (1, H, W) or (1|B, 1|C, H, W) on the map's device, broadcast to the map (B, C, H, W)."""
    full = where.reshape(*(1,) * (4 - where.ndim), *where.shape)
    # (C, H, W) is refused: masks per image without their channel axis look the same where B = C
    fits = values.ndim == 4 and full.shape[-2:] == values.shape[-2:] and (where.ndim != 3 or len(where) == 1)
    if not fits or any(m not in (1, v) for m, v in zip(full.shape[:2], values.shape[:2], strict=True)):
        raise ValueError(
            f"a mask of shape {tuple(where.shape)} does not fit values of shape {tuple(values.shape)}: "
            "pass (H, W) or (1 or B, 1 or C, H, W), as large as what the per-pixel function returns"
        )
    return full.to(values).expand_as(values)
