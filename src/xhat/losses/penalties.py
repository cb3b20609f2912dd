"""Penalties on images: callables from images (B, C, H, W) in [-1, 1] to one value per image (B,)."""

from collections.abc import Callable

from torch import Tensor

from xhat.shapes import image_mean

Penalty = Callable[[Tensor], Tensor]


def per_image(fn: Callable[[Tensor], Tensor]) -> Penalty:
    """Make a penalty of a function of a whole batch that returns a value per pixel: its mean over pixels.

    Args:
        fn: (B, C, H, W) -> (B, ...).
    """

    def penalty(images: Tensor) -> Tensor:
        return image_mean(fn(images))

    return penalty


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean |difference| of vertical and of horizontal neighbours, added (Rudin et al. 1992)."""
    return image_mean(images.diff(dim=-2).abs()) + image_mean(images.diff(dim=-1).abs())


def out_of_range(images: Tensor) -> Tensor:
    """Mean distance of the pixels from [-1, 1]: 0 for images that need no clipping."""
    return image_mean((images.abs() - 1).clamp(min=0))
