"""The denoising error per noise level: one scale for every target, weighting and schedule."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import counted
from xhat.denoiser import Denoiser
from xhat.shapes import image_mean, over_images


@dataclass(frozen=True)
class DenoisingError:
    """Mean squared error of x0_hat per pixel, in [-1, 1] units.

    Attributes:
        logsnr: noise levels.
        x0_error: mean over images and pixels of (x0 - x0_hat)².
        x0_error_se: its standard error over images.
        images: number of images.
    """

    logsnr: list[float]
    x0_error: list[float]
    x0_error_se: list[float]
    images: int


@torch.no_grad()
def denoising_error(
    denoiser: Denoiser, x0: Tensor, labels: Tensor | None = None, levels: int = 12, seed: int = 0, batch: int = 250
) -> DenoisingError:
    """Measure x0_hat at `levels` noise levels, logsnr from 8 to -8 as far as the schedule reaches, with fixed noise.

    Args:
        denoiser: the model.
        x0: held-out images (N, C, H, W) in [-1, 1].
        labels: of conditional models, (N,).
        levels: number of noise levels.
        seed: of the noise, the same at every level and for every model.
        batch: images at a time.
    """
    schedule, device = denoiser.schedule, x0.device
    reach = torch.tensor([max(schedule.t_min, 1e-4), 1.0], dtype=torch.float64, device=schedule.device)
    ends = schedule.logsnr(reach).clamp(-8, 8)
    wanted = torch.linspace(float(ends[0]), float(ends[1]), levels, dtype=torch.float64, device=schedule.device)
    times = schedule.on_grid(schedule.t_of(wanted)).clamp(schedule.t_min, 1).unique()
    logsnr, means, errors = [], [], []
    for time in times.sort().values:
        parts = []
        for first in range(0, len(x0), batch):
            images = x0[first : first + batch]
            noise = counted.normal(tuple(images.shape), seed, "denoising error", first=first, device=device)
            t = torch.full((len(images),), float(time), device=device)
            z = over_images(schedule.alpha(t), images) * images + over_images(schedule.sigma(t), images) * noise
            cond = None if labels is None else {"label": labels[first : first + batch]}
            parts.append(image_mean((denoiser(z, t, cond).x0 - images) ** 2))
        error = torch.cat(parts).double()
        logsnr.append(float(schedule.logsnr(time)))
        means.append(float(error.mean()))
        errors.append(float(error.std() / len(error) ** 0.5))
    return DenoisingError(logsnr, means, errors, len(x0))
