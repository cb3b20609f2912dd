"""The denoising error per noise level: one scale for every target, weighting and schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import rng
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.sharded import gathered
from xhat.diffusion.targets import decode_x0
from xhat.distributed import ALONE, Shares
from xhat.errors import UsageError
from xhat.tensors import image_mean, over_images

LEVELS: tuple[float, ...] = tuple(float(level) for level in range(-8, 9))
"""The noise levels that runs are compared at: logsnr from -8, where next to nothing is known of x0, to 8."""


@dataclass(frozen=True)
class DenoisingError:
    """Errors of x0 over noise levels, and what they cost in bits.

    Attributes:
        logsnr: noise levels (L).
        x0_error: mean over images and pixels of (x0 - x0_hat)², [-1, 1] units (L).
        x0_error_se: its standard error over images (L).
        density: bits/dim per unit logsnr, ½ SNR · x0_error / ln 2: what this level adds to the bound (L).
        bits_per_dim: its integral over the levels.
        bits_per_dim_se: its standard error over images.
        images: number of images.
    """

    logsnr: list[float]
    x0_error: list[float]
    x0_error_se: list[float]
    density: list[float]
    bits_per_dim: float
    bits_per_dim_se: float
    images: int


def denoising_error(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Condition | None = None,
    logsnr: Sequence[float] = LEVELS,
    seed: int = 0,
    batch: int = 250,
    shares: Shares = ALONE,
) -> DenoisingError:
    """`summary` of `x0_errors`, at those levels that the schedule has."""
    levels = reached(denoiser.schedule, logsnr)
    return summary(x0_errors(denoiser, x0, cond, levels, seed, batch, shares), levels)


@torch.no_grad()
def x0_errors(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Condition | None = None,
    logsnr: Sequence[float] = LEVELS,
    seed: int = 0,
    batch: int = 250,
    shares: Shares = ALONE,
) -> Tensor:
    """Mean over pixels of (x0 - x0_hat)² of every image at every level, (L, N) float64 on the CPU.

    Image k at level l sees a noise that is a function of (seed, logsnr l, k) alone: the same for every model, whatever its
    schedule, and for `floor_errors`. Between the grid points of a discrete schedule its table is interpolated.

    Args:
        denoiser: the model, in evaluation mode.
        x0: held-out samples (N, ...): images (N, C, H, W) in [-1, 1].
        cond: keyword arguments of the network, (N, ...).
        logsnr: noise levels, which the schedule must have: see `reached`.
        seed: of the noise.
        batch: images at a time.
        shares: of several processes, who measures what.
    """
    schedule, device = denoiser.schedule, x0.device
    wide = torch.tensor(list(logsnr), dtype=torch.float64, device=schedule.device)
    times = schedule.t_of(wide).detach().clamp(max(schedule.t_min, 0.0), 1.0)

    def errors_of(what: tuple[float, Tensor, int]) -> Tensor:
        level, time, first = what
        images = x0[first : first + batch]
        t = time.to(device).expand(len(images))
        noise = level_noise(images, level, first, seed)
        z = over_images(schedule.alpha(t), images) * images + over_images(schedule.sigma(t), images) * noise
        told = None if cond is None else {name: value[first : first + batch] for name, value in cond.items()}
        prediction = denoiser(z.to(x0.dtype), t, told)
        # the map from the network's output to x0 in float64: at low noise a float32 error would be seen
        x0_hat = decode_x0(denoiser.target, schedule, z.to(x0.dtype).double(), t, prediction.raw.double())
        return image_mean((x0_hat - images) ** 2).cpu()

    work = [(level, time, first) for level, time in zip(logsnr, times, strict=True) for first in range(0, len(x0), batch)]
    with gathered(denoiser.net):
        return torch.cat(list(shares.map(errors_of, work))).reshape(len(logsnr), len(x0))


def level_noise(images: Tensor, level: float, first: int, seed: int) -> Tensor:
    """The noise of images number first, first + 1, ... at a level, as `images` (B, C, H, W)."""
    drawn = rng.normal(tuple(images.shape), seed, "denoising error", float(level), first=first, device=images.device)
    return drawn.to(images.dtype)


def reached(schedule: Schedule, logsnr: Sequence[float] = LEVELS) -> list[float]:
    """Those levels that lie within the times the schedule trains on.

    Raises:
        ValueError: there are fewer than two, so that there is no integral.
    """
    ends = torch.tensor([max(schedule.t_min, 0.0), 1.0], dtype=torch.float64, device=schedule.device)
    high, low = (float(end) for end in schedule.logsnr(ends).detach())
    inside = [level for level in logsnr if low - 1e-6 <= level <= high + 1e-6]
    if len(inside) < 2:
        raise UsageError(f"the schedule spans logsnr {low:.3g} to {high:.3g}: fewer than two of the levels to measure at")
    return inside


def bits_density(errors: Tensor, logsnr: Sequence[float]) -> Tensor:
    """½ SNR · error / ln 2 for errors (L, ...): bits/dim per unit logsnr of the continuous-time bound.

    Kingma et al. 2021 (VDM), eq. 12 and 18: the bound is ½ ∫ ‖x0 - x0_hat‖² dSNR, whatever the schedule between its ends.
    """
    snr = torch.tensor(list(logsnr), dtype=errors.dtype).exp()
    return errors * (snr / (2 * math.log(2))).reshape(-1, *[1] * (errors.ndim - 1))


def bits_between(errors: Tensor, logsnr: Sequence[float]) -> Tensor:
    """The integral of `bits_density` over the levels by the trapezoidal rule: errors (L, N) -> bits/dim (N,)."""
    return torch.trapezoid(bits_density(errors, logsnr), torch.tensor(list(logsnr), dtype=errors.dtype), dim=0)


def summary(errors: Tensor, logsnr: Sequence[float]) -> DenoisingError:
    """Means and standard errors over images of errors (L, N)."""
    bits = bits_between(errors, logsnr)
    root = errors.shape[1] ** 0.5
    return DenoisingError(
        list(logsnr),
        errors.mean(1).tolist(),
        (errors.std(1) / root).tolist(),
        bits_density(errors.mean(1), logsnr).tolist(),
        float(bits.mean()),
        float(bits.std() / root),
        errors.shape[1],
    )
