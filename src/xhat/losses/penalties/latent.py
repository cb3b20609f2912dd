"""Distances of latents in the features of their own decoder."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from torch.utils.checkpoint import checkpoint as recompute

from xhat.losses.penalties.base import Paired
from xhat.networks.autoencoders import codes_of

__all__ = ["latent_perceptual"]

SHARE, REACH = 0.02, 2.0
"""Features further than REACH standard deviations beyond the SHARE and 1 - SHARE quantiles of their map are outliers."""


def latent_perceptual(vae: Any, blocks: int = 4, checkpoint: bool = True) -> Paired:
    """The distance of estimated and clean latents in the features of the autoencoder's decoder (Berrada et al. 2025).

    LPL = 1/L sum_l 2^(-min(l, 3)) / C_l sum_c mean over the pixels that are no outliers of (phi_l,c - phi_hat_l,c)²: phi are
    the features behind the decoder's middle and its first `blocks` levels, divided at each pixel by the clean ones' norm over
    channels (Boosting latent diffusion with perceptual objectives, section 3.2, with their choice of shared norms). Pixels are
    not decoded. Outliers of the clean features, which decoders of Stable Diffusion have, do not count.

    It is for `ImageLoss` on latents, without `decode`, at low noise: ImageLoss(latent_perceptual(vae), weighting=
    high_snr_latents(), expect=None). The paper's published code leaves out the decoder's first convolution, post_quant_conv.

    Args:
        vae: an AutoencoderKL of diffusers; frozen from now on.
        blocks: how many levels of the decoder, the coarse ones first.
        checkpoint: compute each level again in the backward pass instead of keeping what it made on the way.

    Raises:
        ValueError: the autoencoder's decoder has no such levels.
    """
    decoder: Any = getattr(vae, "decoder", None)
    levels = getattr(decoder, "up_blocks", None)
    if levels is None or not hasattr(decoder, "mid_block") or not hasattr(decoder, "conv_in"):
        raise ValueError(f"latent_perceptual reads the decoder of an AutoencoderKL, got a {type(vae).__name__}")
    if not 1 <= blocks <= len(levels):
        raise ValueError(f"blocks must be 1 to {len(levels)}, the levels of this decoder, got {blocks}")
    vae.requires_grad_(False).eval()

    def features(latents: Tensor) -> list[Tensor]:
        if vae.device != latents.device:
            vae.to(latents.device)
        x = codes_of(vae, latents).to(vae.dtype)
        x = decoder.conv_in(x if vae.post_quant_conv is None else vae.post_quant_conv(x))
        found = []
        for level in (decoder.mid_block, *levels[:blocks]):
            x = recompute(level, x, use_reentrant=False) if checkpoint and torch.is_grad_enabled() else level(x)
            found.append(x.float())
        return found

    def distance(latents: Tensor, x0: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):  # differences of nearly equal features drown in bf16
            return compared(latents.float(), x0.float())

    def compared(latents: Tensor, x0: Tensor) -> Tensor:
        with torch.no_grad():
            clean = features(x0)
        of_level: list[Tensor] = []
        for level, (found, wanted) in enumerate(zip(features(latents), clean, strict=True)):
            counts = torch.ones_like(wanted) if level < 2 else _no_outliers(wanted, around=5 if level > 2 else 3)
            norm = torch.linalg.vector_norm(wanted, dim=1, keepdim=True) + 1e-6
            error = counts * ((found - wanted) / norm).square()
            mean = error.sum((2, 3)) / counts.sum((2, 3)).clamp(min=1)
            of_level.append(2.0 ** -min(level, 3) * mean.mean(1))
        return torch.stack(of_level).mean(0)

    return Paired(distance)


def _no_outliers(features: Tensor, around: int) -> Tensor:
    """1 where a feature map (B, C, H, W) is ordinary, 0 at outliers and within `around` pixels of larger patches of them."""
    flat = features.flatten(2)
    low, high = (flat.quantile(q, dim=2)[..., None, None] for q in (SHARE, 1 - SHARE))
    reach = REACH * flat.std(2)[..., None, None]
    counts = ((features > low - reach) & (features < high + reach)).to(features.dtype)
    closed = max_pool2d(counts, 3, 1, 1)  # single outliers do no harm
    return -max_pool2d(-closed, around, 1, around // 2)
