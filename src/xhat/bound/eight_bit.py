"""Probabilities of 8-bit images: their bins, the discretized Gaussian, the softmax over levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.tensors import image_sum, over_images


@dataclass(frozen=True)
class DiscretizedGaussian:
    """A Gaussian over pixel values, integrated over the 256 bins of 8-bit images (DDPM, Ho et al. 2020, eq. 13).

    P(k) = Phi((x_k + 1/255 - mean)/std) - Phi((x_k - 1/255 - mean)/std), x_k = 2k/255 - 1; the first and the last bin
    reach to infinity, so that the bins sum to 1.

    Attributes:
        mean: (B, ...).
        log_variance: broadcastable to `mean`.
    """

    mean: Tensor
    log_variance: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability in nats per image, (B,), of 8-bit images scaled to [-1, 1].

        Raises:
            ValueError: a value is off the 8-bit grid (latents, dequantized data).
        """
        return image_sum(self.log_prob_per_pixel(x))

    def log_prob_per_pixel(self, x: Tensor) -> Tensor:
        """As `log_prob`, shaped like x."""
        level = bin_index(x)
        inverse_std = torch.exp(-0.5 * self.log_variance)
        upper, lower = (x - self.mean + 1 / 255) * inverse_std, (x - self.mean - 1 / 255) * inverse_std
        # The open ends are finite: an infinite bound would give 0 · inf = NaN in the gradient of the standard deviation.
        return log_normal_mass(torch.where(level == 0, -_FAR, lower), torch.where(level == 255, _FAR, upper))


def softmax_decoder(x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """VDM's decoder: log p(x | z) in nats per image, p(x_k | z) ∝ N(z; alpha x_k, sigma²) over the 256 values of a pixel.

    Kingma et al. 2021, section 3.1 and appendix F. A softmax over levels: normalized by construction.

    Args:
        x: 8-bit images scaled to [-1, 1], (B, ...).
        z: the latent at the lowest noise, (B, ...).
        alpha: the schedule's value there, (B,).
        sigma: the schedule's value there, (B,).

    Raises:
        ValueError: a value of x is off the 8-bit grid.
    """
    bin_index(x)
    latent = z / over_images(alpha, z)
    inverse_variance = over_images((alpha / sigma) ** 2, z)
    # Levels further than 9 standard deviations from the latent add less than 1e-17 to the sum: most of the 256 are left out.
    reach = min(256, math.ceil(9 * 127.5 * float((sigma / alpha).detach().max())) + 1)
    nearest = ((latent.detach() + 1) * 127.5).round().clamp(0, 255)
    level = nearest.unsqueeze(-1) + torch.arange(-reach, reach + 1, device=z.device, dtype=z.dtype)
    logits = -0.5 * (latent.unsqueeze(-1) - (level / 127.5 - 1)) ** 2 * inverse_variance.unsqueeze(-1)
    total = logits.masked_fill((level < 0) | (level > 255), -math.inf).logsumexp(-1)
    return image_sum(-0.5 * (latent - x) ** 2 * inverse_variance - total)


_FAR = 1e9  # standard deviations


def bin_index(x: Tensor) -> Tensor:
    """The 8-bit level 0..255 of each pixel in [-1, 1], int64.

    Raises:
        ValueError: x is not on the grid 2k/255 - 1.
    """
    level = (x.detach() + 1) * 127.5
    rounded = level.round()
    if not bool(((level - rounded).abs() < 1e-2).all() & (rounded >= 0).all() & (rounded <= 255).all()):
        raise ValueError("the decoder is defined for 8-bit images scaled to [-1, 1]; latents and other floats have no bins")
    return rounded.long()


def log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, elementwise, stable with useful gradients in both tails.

    The interval is mirrored into the lower tail, where log Phi is resolved, and the difference of the two masses is
    log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b))).
    """
    mirror = (lower + upper) > 0
    a, b = torch.where(mirror, -upper, lower), torch.where(mirror, -lower, upper)
    log_b = _log_ndtr(b)
    return log_b + torch.log(-torch.expm1(_log_ndtr(a) - log_b))


def _log_ndtr(x: Tensor) -> Tensor:
    """log Phi(x). Unlike torch.special.log_ndtr's, its gradient stays exact far below: it never forms exp(-x²/2)/Phi."""
    low = x.clamp(max=0.0).clamp(min=-1e18)  # each branch sees harmless input where the other one is selected
    tail = torch.log(0.5 * torch.special.erfcx(-low / math.sqrt(2))) - 0.5 * low**2
    body = torch.log1p(-0.5 * torch.erfc(x.clamp(min=0.0) / math.sqrt(2)))
    return torch.where(x < 0, tail, body)
