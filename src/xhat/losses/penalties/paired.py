"""Penalties that compare the estimate with the clean image."""

from typing import Literal

import torch
from torch import Tensor

from xhat.losses.penalties.base import Paired
from xhat.registry import PENALTIES
from xhat.tensors import image_mean

__all__ = ["lpips", "ssim"]


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
