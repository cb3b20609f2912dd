"""Penalties on images: callables from images (B, C, H, W) in [-1, 1] to one value per image (B,), differentiable."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xhat.registry import PENALTIES
from xhat.tensors import image_mean, image_sum

Penalty = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Paired:
    """A penalty that compares the estimate with the clean image it was made from; `ImageLoss` hands it both.

    Attributes:
        fn: (images, x0), both (B, C, H, W) in [-1, 1] -> (B,).
    """

    fn: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, x0: Tensor) -> Tensor:
        return self.fn(images, x0)


def per_image(fn: Callable[[Tensor], Tensor]) -> Penalty:
    """Make a penalty of a function of a whole batch that returns a value per pixel: its mean over pixels.

    Args:
        fn: (B, C, H, W) -> (B, ...).
    """

    def penalty(images: Tensor) -> Tensor:
        return image_mean(fn(images))

    return penalty


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
def high_frequencies(cutoff: float) -> Penalty:
    """Mean square of the part of the image at radial frequencies |f| >= cutoff: (1/HWC) sum_{|f| >= cutoff} |X(f)|².

    X is the unitary Fourier transform, so by Parseval's theorem this is the mean square of the high-passed image, and
    cutoff = 0 gives that of the whole. The image counts as periodic: a jump between opposite edges is high frequency too.

    Args:
        cutoff: in cycles per pixel; 1/2 is the Nyquist frequency along an axis, sqrt(1/2) the corner of the spectrum.

    Raises:
        ValueError: no frequency is as high as the cutoff.
    """
    if not cutoff <= math.sqrt(0.5):
        raise ValueError(f"no frequency of an image reaches {cutoff} cycles per pixel: pass a cutoff between 0 and 0.707")

    def penalty(images: Tensor) -> Tensor:
        rows, columns = (torch.fft.fftfreq(n, device=images.device, dtype=torch.float64) for n in images.shape[-2:])
        kept = torch.hypot(rows[:, None], columns) >= cutoff
        amplitude = torch.view_as_real(torch.fft.fft2(images, norm="ortho"))
        return image_mean(amplitude.square().sum(-1) * kept)

    return penalty


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


def _require_mask(where: Tensor) -> None:
    if not 2 <= where.ndim <= 4 or not bool((where >= 0).all()):
        raise ValueError("a mask has shape (H, W) or (1 or B, 1 or C, H, W), and values of at least 0")


def mask(per_pixel: Callable[[Tensor], Tensor], where: Tensor) -> Penalty:
    """mean over all pixels of where · per_pixel(images): grows with the mask's area, for "this much of the image is wrong".

    Args:
        per_pixel: images (B, C, H, W) -> a value per pixel, (B, C', H', W').
        where: what counts and how much, at least 0: (H', W'), (1, H', W') or (1|B, 1|C', H', W'); bool or float.

    Raises:
        ValueError: a negative mask, or one that does not fit the values (at the call).
    """
    _require_mask(where)

    def penalty(images: Tensor) -> Tensor:
        values = per_pixel(images)
        return image_mean(_on(where, values) * values)

    return penalty


def masked_mean(per_pixel: Callable[[Tensor], Tensor], where: Tensor) -> Penalty:
    """sum(where · per_pixel(images)) / sum(where) per image: the mean over the mask, whatever its area; 0 if it is empty.

    Args:
        per_pixel: images (B, C, H, W) -> a value per pixel, (B, C', H', W').
        where: as in `mask`.

    Raises:
        ValueError: as `mask`.
    """
    _require_mask(where)

    def penalty(images: Tensor) -> Tensor:
        values = per_pixel(images)
        weight = _on(where, values)
        area = image_sum(weight)
        # an empty mask: 0/1 instead of 0/0, so that value and gradient are 0
        return image_sum(weight * values) / torch.where(area > 0, area, torch.ones_like(area))

    return penalty


def frozen(module: nn.Module, read: Callable[[Any], Tensor] | None = None) -> Penalty:
    """Make a penalty of a network: a classifier, a reward model, a perceptual network. The gradient reaches the images only.

    The module itself is frozen, not a copy: its parameters stop requiring gradients, every call puts it in evaluation mode
    and on the images' device and dtype. What is returned is a plain function, so a module that keeps it does not own the
    network: no optimizer, checkpoint, `.train()` or DDP wrapper sees it. Pass `copy.deepcopy(module)` to go on training it.

    Args:
        module: called as module(images).
        read: its output -> (B,), for example `lambda logits: -logits.log_softmax(-1)[:, 3]` for "looks like class 3", or
            `lambda reward: -reward[:, 0]`: a penalty is what should become small.

    Raises:
        ValueError: what comes out is not (B,), or (B, 1) without `read` (at the call).
    """
    module.requires_grad_(False)

    def penalty(images: Tensor) -> Tensor:
        output = module.eval().to(images.device, images.dtype)(images)
        value = output if read is None else read(output)
        if read is None and isinstance(value, Tensor) and value.shape == (len(images), 1):
            value = value[:, 0]
        if not isinstance(value, Tensor) or value.shape != (len(images),):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"a frozen {type(module).__name__} gave {got} instead of one value per image, ({len(images)},): pass read=, a "
                "function of its output, for example read=lambda logits: -logits.log_softmax(-1)[:, 3]"
            )
        return value.to(images.dtype)  # autocast may have made it bf16

    return penalty


@cache
def _digit_reader() -> Penalty:
    from xhat.networks.digits import MNISTFeatures  # not at the top: evaluation imports this file, weights load once

    network = MNISTFeatures.trained()
    return frozen(network, lambda features: -network.head(features).log_softmax(-1).amax(-1))


@PENALTIES.register
def unreadable_digit(images: Tensor) -> Tensor:
    """-log of the largest class probability, in nats, by the shipped MNIST network: 0 for a digit read with certainty.

    At most log 10. It tells digits from what lies between them, not from what is no digit: the network reads white noise
    with certainty, so this needs the base term beside it. FID on MNIST and "digits read" use the same network: a model
    trained on this is judged by its own examiner there, so look at other figures as well.

    Args:
        images: (B, 1, 28, 28).

    Raises:
        ValueError: any other size.
    """
    if images.shape[1:] != (1, 28, 28):
        raise ValueError(f"unreadable_digit reads grey images (B, 1, 28, 28), got {tuple(images.shape)}")
    return _digit_reader()(images)


@PENALTIES.register
def ssim(kernel_size: int = 11) -> Paired:
    """1 - SSIM of the estimate and x0, averaged over pixels and channels (Wang et al. 2004, eq. 13; torchmetrics).

    The window is a Gaussian of sigma = 1.5 · kernel_size/11, the paper's at 11. SSIM is defined on intensities from 0 up
    (its luminance term is relative to black), so both images are shifted to [0, 2] first: the value is that of 8-bit images.

    Args:
        kernel_size: odd, 3 to 43; at most the images' height and width.

    Raises:
        ValueError: no such window, or (at the call) images smaller than it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as compare

    if kernel_size % 2 == 0 or not 3 <= kernel_size <= 43:
        raise ValueError(f"kernel_size must be odd and between 3 and 43, got {kernel_size}")
    # torchmetrics ignores its own kernel_size for Gaussian windows and takes 2 int(3.5 sigma + 0.5) + 1 pixels: these
    sigma = 1.5 * kernel_size / 11

    def distance(images: Tensor, x0: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < kernel_size:
            raise ValueError(
                f"SSIM's window of {kernel_size} pixels does not fit {height}x{width} images: pass a smaller odd kernel_size"
            )
        with torch.autocast(images.device.type, enabled=False):  # variances as E[x²] - E[x]² drown in bf16
            similarity: Tensor = compare(images + 1, x0.to(images) + 1, sigma=sigma, data_range=2.0, reduction="none")
        return 1 - similarity

    return Paired(distance)


@PENALTIES.register
def lpips(net: Literal["alex", "vgg", "squeeze"] = "alex") -> Paired:
    """LPIPS of the estimate and x0 (Zhang et al. 2018, eq. 1; torchmetrics' network, with the weights of the paper).

    torchmetrics' metric refuses values below -1, which an honest x0_hat has. The refusal is a guard, not part of the
    distance: the network takes any real image. So it is called directly; nothing is clamped, and pixels outside the range
    keep the gradient that the distance really has there. Add `out_of_range` to keep the estimate where LPIPS was calibrated.

    Args:
        net: the backbone. AlexNet needs images of at least 31x31 pixels; grey images are repeated to three channels.

    Raises:
        ImportError: torchvision, which has the backbone's weights, is missing.
        ValueError: images with other than 1 or 3 channels (at the call).
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        network = LearnedPerceptualImagePatchSimilarity(net_type=net).net.requires_grad_(False)
    except ImportError:
        raise ImportError(
            "LPIPS needs torchvision, which has the weights of its backbone: pip install torchvision, in the build made for "
            f"torch {torch.__version__}"
        ) from None

    def distance(images: Tensor, x0: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS compares images of 1 or 3 channels, got {images.shape[1]}: pass decode= for latents")
        pair = (x.to(images).expand(-1, 3, -1, -1) for x in (images, x0))
        return image_mean(network.eval().to(images.device, images.dtype)(*pair)).to(images.dtype)

    return Paired(distance)
