"""The one place where per-image numbers meet images."""

from jaxtyping import Float, Shaped
from torch import Tensor


def over_images(value: Shaped[Tensor, "b"], images: Tensor) -> Tensor:
    """Reshape per-image numbers (B,) to (B, 1, ..., 1), so that they scale `images` (B, ...), in its dtype.

    Plain broadcasting would silently pair a (B,) vector with the last axis of an image whose width is B, or turn
    (B, 1)·(B,) into a (B, B) table; every product of the two goes through here instead.

    Raises:
        ValueError: `value` is not a vector with one entry per image.
    """
    if value.ndim != 1 or value.shape[0] != images.shape[0]:
        raise ValueError(
            f"expected one number per image, shape ({images.shape[0]},), got {tuple(value.shape)}: "
            "reduce over all pixels first, for example with x.flatten(1).mean(1)"
        )
    return value.to(images.dtype).reshape(-1, *(1,) * (images.ndim - 1))


def image_mean(values: Tensor) -> Float[Tensor, "b"]:
    """Mean over everything but the first axis: (B, ...) -> (B,)."""
    return values.flatten(1).mean(1)


def image_sum(values: Tensor) -> Float[Tensor, "b"]:
    """Sum over everything but the first axis: (B, ...) -> (B,)."""
    return values.flatten(1).sum(1)
