"""Images and latents of an autoencoder, with the scale and the shift that its diffusion model was trained on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xhat.tensors import over_images

FAR = 10.0
"""What no image in [-1, 1] reaches, whatever resizing has added, and 8-bit pixels do."""


def moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, c, h, w) of the latents of images (B, C, H, W) in [-1, 1], in the model's scale, float32.

    latent = (code - shift) · scale, with the autoencoder's `scaling_factor` and `shift_factor`, or its mean and deviation by
    channel (`latents_mean`, `latents_std`). An autoencoder that is not a distribution has deviation 0.

    Args:
        vae: of diffusers: AutoencoderKL, AutoencoderDC, AutoencoderTiny or VQModel.
        images: to encode; they are given in the autoencoder's own precision.

    Raises:
        ValueError: the images have other channels than the autoencoder, or no room for its factor.
    """
    _require_images(vae, images)
    found = _called(vae, "encode", images)
    if (codes := getattr(found, "latent_dist", None)) is not None:
        mean, std = codes.mean.float(), codes.std.float()
    else:
        mean = (found.latent if hasattr(found, "latent") else found.latents).float()
        std = torch.zeros_like(mean)
    shift, scale = _affine(vae, mean)
    return (mean - shift) * scale, std * scale


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, C, H, W), about -1 to 1, float32, of latents in the model's scale; with gradients where they are on."""
    images: Tensor = _called(vae, "decode", codes_of(vae, latents)).sample
    return images.float()


class _Method(nn.Module):
    """One method of an autoencoder as a module."""

    def __init__(self, vae: Any, name: str) -> None:
        super().__init__()
        self.vae, self.name = vae, name

    def forward(self, x: Tensor) -> Any:
        return getattr(self.vae, self.name)(x)


def _called(vae: Any, name: str, x: Tensor) -> Any:
    """A method of an autoencoder, never in less than its own precision: half precision rounds pixels by several 8-bit levels.

    In float16 some autoencoders overflow (`force_upcast`, SDXL's): they are called with float32 copies of their weights.
    """
    with torch.autocast(x.device.type, enabled=False):
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            method = _Method(vae, name)
            wide = {key: value.float() for key, value in method.state_dict().items() if value.is_floating_point()}
            return functional_call(method, wide, (x.float(),))
        return getattr(vae, name)(x.to(vae.dtype))


def codes_of(vae: Any, latents: Tensor) -> Tensor:
    """Latents in the autoencoder's own scale."""
    shift, scale = _affine(vae, latents)
    return latents / scale + shift


def _affine(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, scale), each of one value or of one a channel, so that latent = (code - shift) · scale."""
    config = vae.config
    shift, scale = float(config.get("shift_factor") or 0.0), float(config.get("scaling_factor") or 1.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return like.new_tensor(shift), like.new_tensor(scale)
    channels = like[0]
    return over_images(like.new_tensor(mean), channels), over_images(scale / like.new_tensor(std), channels)


def _require_images(vae: Any, images: Tensor) -> None:
    channels = int(vae.config.in_channels)
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"{type(vae).__name__} encodes images (B, {channels}, H, W), got {tuple(images.shape)}: "
            "repeat the channel of grey images, and drop transparency"
        )
    if not images.is_floating_point():
        raise ValueError(f"images are floats in [-1, 1], got {images.dtype}: for 8-bit pixels x / 127.5 - 1")
    if float(images.abs().amax()) > FAR:
        raise ValueError(f"images are floats in [-1, 1], got up to {float(images.abs().amax()):.4g}: for pixels x / 127.5 - 1")
    if (factor := shrinks(vae)) > 1 and any(side % factor for side in images.shape[2:]):
        height, width = images.shape[2:]
        raise ValueError(
            f"{type(vae).__name__} makes one latent of {factor} x {factor} pixels: {height} x {width} must be multiples of that"
        )


def shrinks(vae: Any) -> int:
    """How many pixels along a side make one latent."""
    return shrinks_of(vae.config)


def shrinks_of(config: Mapping[str, Any]) -> int:
    """The same from the autoencoder's config: 2 for each level of the encoder but one."""
    if (levels := config.get("encoder_block_out_channels") or config.get("block_out_channels")) is None:
        return 1
    return int(config.get("spatial_compression_ratio") or 2 ** (len(levels) - 1))
