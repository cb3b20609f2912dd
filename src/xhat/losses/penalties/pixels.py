"""Penalties on the pixels of images (B, C, H, W) in [-1, 1]: one value per image (B,), differentiable."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.registry import PENALTIES
from xhat.tensors import image_mean

__all__ = ["five_point", "high_frequencies", "laplacian", "out_of_range", "per_image", "total_variation"]


@dataclass(frozen=True)
class per_image:
    """Make a penalty of a function of a whole batch that returns a value per pixel: its mean over pixels.

    Args:
        fn: (B, C, H, W) -> (B, ...).
    """

    fn: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return image_mean(self.fn(images))


@PENALTIES.register
def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean |difference| of vertical and of horizontal neighbours, added (Rudin et al. 1992).

    Along an axis of one pixel, where nothing has a neighbour, it is 0.
    """
    along = [images.diff(dim=dim).abs() for dim in (-2, -1) if images.shape[dim] > 1]
    return sum((image_mean(d) for d in along), start=images.flatten(1)[:, :0].sum(1))


@PENALTIES.register
def out_of_range(images: Tensor) -> Tensor:
    """Mean distance of the pixels from [-1, 1]: 0 for images that need no clipping."""
    return image_mean((images.abs() - 1).clamp(min=0))


def five_point(images: Tensor) -> Tensor:
    """The sum of a pixel's four neighbours less four times itself: spacing² times the Laplacian, to second order.

    Args:
        images: (..., H, W) of at least 3x3 pixels.

    Returns:
        (..., H - 2, W - 2), the interior: no boundary condition is made up for the edge.

    Raises:
        ValueError: no interior.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 3:
        raise ValueError(f"a five-point stencil needs images of at least 3x3 pixels, got {height}x{width}")
    up, down, left, right = images[..., :-2, 1:-1], images[..., 2:, 1:-1], images[..., 1:-1, :-2], images[..., 1:-1, 2:]
    return up + down + left + right - 4 * images[..., 1:-1, 1:-1]


@PENALTIES.register
def laplacian(images: Tensor) -> Tensor:
    """Mean squared five-point Laplacian of the interior pixels, in (pixel difference)²: 0 for constants and linear ramps.

    Unlike total variation it spares slopes and punishes bends, most of all single pixels that stand out.

    Raises:
        ValueError: images smaller than 3x3.
    """
    return image_mean(five_point(images).square())


@PENALTIES.register
@dataclass(frozen=True)
class high_frequencies:
    """Mean square of the part of the image at radial frequencies |f| >= cutoff: (1/HWC) sum_{|f| >= cutoff} |X(f)|².

    X is the unitary Fourier transform, so by Parseval's theorem this is the mean square of the high-passed image, and
    cutoff = 0 gives that of the whole. The image counts as periodic: a jump between opposite edges is high frequency too.

    Args:
        cutoff: in cycles per pixel; 1/2 is the Nyquist frequency along an axis, sqrt(1/2) the corner of the spectrum.

    Raises:
        ValueError: no frequency is as high as the cutoff.
    """

    cutoff: float

    def __post_init__(self) -> None:
        if not self.cutoff <= math.sqrt(0.5):
            raise ValueError(
                f"no frequency of an image reaches {self.cutoff} cycles per pixel: pass a cutoff between 0 and 0.707"
            )

    def __call__(self, images: Tensor) -> Tensor:
        rows, columns = (torch.fft.fftfreq(n, device=images.device, dtype=torch.float64) for n in images.shape[-2:])
        kept = torch.hypot(rows[:, None], columns) >= self.cutoff
        amplitude = torch.view_as_real(torch.fft.fft2(images, norm="ortho"))
        return image_mean(amplitude.square().sum(-1) * kept)
