"""A network that knows its pixels are 8-bit: it predicts a prior over the 256 levels, and Bayes' rule does the rest."""

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xhat.budgets import require_at_most
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import X0
from xhat.diffusion.time_inputs import log_sigma
from xhat.networks.layers import fixed, float32_edge
from xhat.networks.unet import UNet
from xhat.registry import NETWORKS

ROWS = 2048  # pixels at a time: their 256 levels stay in the cache
BIAS_GAIN = 10.0  # log shares of levels span ten nats; with this gain they are learned in a few hundred steps


def inverse_alpha(schedule: Schedule, t: Tensor) -> Tensor:
    """1/alpha: z/alpha = x0 + (sigma/alpha) noise."""
    return 1 / schedule.alpha(t)


@NETWORKS.register
class LevelPosterior(nn.Module):
    """x0_hat = sum_k x_k p(k), p(k) ∝ exp(f·W_k + b_k) · N(z; alpha x_k, sigma²), per pixel, x_k = 2k/255 - 1.

    f are `features` outputs of a U-Net per pixel, W and b are shared by all pixels. The U-Net only has to say what a pixel's
    surroundings make of its level; what the noisy value itself says is exact, at every noise level, also where bf16 or a
    convolution could never resolve it. The output distribution over values is that of Bayesian flow networks (Graves et
    al. 2023, section 5), here as a prior. Predicts X0; takes z/alpha and log(sigma/alpha)/4 (EDM's c_noise).

    Args:
        channels: of the images.
        size: side of the images; only checked.
        classes: number of class labels; None is unconditional.
        widths: as for `UNet`.
        blocks: as for `UNet`.
        features: outputs of the U-Net per pixel value.
    """

    target = X0
    time_input = staticmethod(log_sigma)
    scale_input = staticmethod(inverse_alpha)
    values: Tensor

    def __init__(
        self,
        channels: int = 1,
        size: int | None = None,
        classes: int | None = None,
        widths: tuple[int, ...] = (32, 64),
        blocks: tuple[int, ...] = (1, 4),
        features: int = 16,
    ) -> None:
        super().__init__()
        require_at_most(256, features=features)
        self.channels, self.classes, self.features = channels, classes, features
        self.body = UNet(7 * channels, features * channels, size, classes, widths, blocks, last=1)
        self.register_buffer("values", fixed(lambda: torch.arange(256) / 127.5 - 1), persistent=False)
        self.weight = nn.Parameter(fixed(partial(_smooth_in_levels, features)))
        self.bias = nn.Parameter(torch.zeros(256))
        _keep_out_of_graphs()

    def forward(self, latent: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """z/alpha (B, C, H, W), log(sigma/alpha)/4 (B,), labels (B,) -> x0_hat (B, C, H, W)."""
        with float32_edge(latent.device):
            ratio = torch.exp(4 * c_noise).reshape(-1, 1, 1, 1)
            seen = _input(latent, ratio)
        mean: Tensor = self._posterior_mean(self.body(seen, c_noise, label), latent, ratio)
        return mean

    def _posterior_mean(self, f: Tensor, latent: Tensor, ratio: Tensor) -> Tensor:
        batch, _, height, width = f.shape
        rows = f.reshape(batch, self.channels, self.features, height, width).permute(0, 1, 3, 4, 2).reshape(-1, self.features)
        precision = (ratio**-2).expand_as(latent).reshape(-1)
        with float32_edge(latent.device):
            bias, values = BIAS_GAIN * self.bias, self.values.to(latent.dtype)
            given = rows.to(latent.dtype), self.weight, bias, latent.reshape(-1), precision, values
            if torch.compiler.is_exporting():  # a graph takes any number of images, and has no backward pass
                left, right, _ = _factors(*given[:2], *given[3:])
                return (torch.addmm(bias, left, right).softmax(1) @ values).reshape(latent.shape)
            mean: Tensor = PosteriorMean.apply(*given)  # type: ignore[no-untyped-call]
        return mean.reshape(latent.shape)


def _smooth_in_levels(features: int) -> Tensor:
    """(256, features) weights to start with: both end levels, and waves over the levels."""
    level = torch.arange(256)
    waves = [2 * torch.cos(math.pi * j * level / 255) for j in range(1, features - 1)]
    ends = [3.0 * (level == 0), 3.0 * (level == 255)]
    return torch.stack([*ends, *waves][:features], dim=1).contiguous()


@cache
def _keep_out_of_graphs() -> None:
    """Let torch.compile leave the softmax over 256 levels alone: fused, it takes three times as long as its matrix products.

    Once the first network is made, and not as a decorator: torch.compiler.disable imports the compiler, which takes seconds.
    """
    kept = torch.compiler.disable(LevelPosterior._posterior_mean)
    LevelPosterior._posterior_mean = kept  # type: ignore[method-assign]


def _input(latent: Tensor, ratio: Tensor) -> Tensor:
    """Seven bounded views of z/alpha: z; where it is against black and white; its place in periods of 4 and 16 levels."""
    alpha = torch.rsqrt(1 + ratio**2)
    views = [alpha * latent, torch.tanh((latent + 1) / (2 * ratio)), torch.tanh((latent - 1) / (2 * ratio))]
    for levels in (4, 16):
        frequency = math.pi * 255 / levels
        fade = torch.exp(-0.5 * (frequency * ratio) ** 2)  # the mean of the wave under the noise
        angle = frequency * (latent + 1).clamp(-8, 8)
        views += [fade * torch.sin(angle), fade * torch.cos(angle)]
    return torch.cat(views, dim=1)


class PosteriorMean(torch.autograd.Function):
    """sum_k x_k p(k), p(k) ∝ exp(f·W_k + b_k - ½ precision (y - x_k)²), with a backward pass of two matrix products.

    d mean/d logit_k = p_k (x_k - mean), so that d mean/d f = E[x W] - E[x] E[W] needs no second pass over the levels. Only
    a learned schedule and the likelihood of the ODE ask for d mean/d y = precision · Var[x] and d mean/d precision =
    -½ Cov[x, (y - x)²] = (y - mean) Var[x] - ½ E[(x - mean)³].
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor, w: Tensor, b: Tensor, y: Tensor, precision: Tensor, values: Tensor) -> Tensor:
        """f (n, J), w (256, J), b (256,), y (n,), precision (n,), values (256,) -> (n,)."""
        left, right, moments = _factors(f, w, y, precision, values)
        out, shares = f.new_empty(len(f), moments.shape[1]), []
        for part, into in zip(left.split(ROWS), out.split(ROWS), strict=True):
            p = torch.addmm(b, part, right).softmax(1)
            torch.mm(p, moments, out=into)
            shares.append(p)
        ctx.save_for_backward(f, out, y, precision, values, *shares)
        return out[:, 0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of f, w, b, y and the precision."""
        f, out, y, precision, values, *shares = ctx.saved_tensors
        count, d, mean = f.shape[1], gradient.unsqueeze(1), out[:, :1]
        of_f = d * (out[:, 1 + count :] - mean * out[:, 1 : 1 + count])
        weighted = torch.cat([f, torch.ones_like(d)], dim=1) * d
        both = torch.cat([weighted, weighted * mean], dim=1)
        total = f.new_zeros(2 * (count + 1), len(values))
        for rows, p in zip(both.split(ROWS), shares, strict=True):
            total.addmm_(rows.T, p)
        of_w = total[: count + 1] * values - total[count + 1 :]
        of_y = of_precision = None
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            variance, third = _central_moments(shares, values, mean)
            of_y = gradient * precision * variance
            of_precision = gradient * ((y - out[:, 0]) * variance - third / 2)
        return of_f, of_w[:count].T.contiguous(), of_w[count], of_y, of_precision, None


def _factors(f: Tensor, w: Tensor, y: Tensor, precision: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices whose product, and b, are the logits; and what the probabilities are multiplied with, E[x] first."""
    left = torch.cat([f, (precision * y).unsqueeze(1), precision.unsqueeze(1)], dim=1)
    right = torch.cat([w, values.unsqueeze(1), -0.5 * values.unsqueeze(1) ** 2], dim=1).T
    return left, right, torch.cat([values.unsqueeze(1), w, values.unsqueeze(1) * w], dim=1)


def _central_moments(shares: list[Tensor], values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """E[(x - mean)²] and E[(x - mean)³], (n,) each: differences of raw moments would lose them where the noise is low."""
    second, third = [], []
    for p, centre in zip(shares, mean.split(ROWS), strict=True):
        away = values - centre
        weighted = p * away**2
        second.append(weighted.sum(1))
        third.append((weighted * away).sum(1))
    return torch.cat(second), torch.cat(third)
