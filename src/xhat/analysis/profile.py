"""What an objective is, before training: its weight in every space and against the bound, how it is sampled, its gradients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from xhat.diffusion import targets
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import Target
from xhat.losses.variational import VariationalBound
from xhat.objective.effective_samples import effective_shares
from xhat.objective.multipliers import Multiplier
from xhat.objective.objective import Objective

SPACES = (targets.X0, targets.NOISE, targets.V, targets.SCALED_NOISE, targets.SCORE, targets.FLOW)
STEP_SPACES = (targets.STEP_NOISE, targets.POSTERIOR_MEAN)

TOLERANCE = 1e-6
"""Of the largest weight: what a monotone weighting may rise by, and a constant one vary by."""


@dataclass(frozen=True)
class Profile:
    """The numbers of an objective over noise levels; lists are (N,), from the data to the noise.

    Attributes:
        logsnr: the noise levels, falling.
        t: their times.
        weights: space -> w(logsnr) with loss = Σ_terms w mean_pixels (y - y_hat)², the same loss written in each space.
        effective: the weighting relative to the bound, `Objective.effective_weighting`.
        density: of the samples per unit logsnr.
        importance: what a sample's loss is multiplied with for being drawn there, uniform density / the sampler's.
        effective_share: of the samples, the least of the terms', see `effective_samples`.
        gradient: see `gradient_scale`.
        middle_half: the logsnr below and above which a quarter of the samples are, the lower one first.
        output: the space of the network's output, a key of `weights`.
        monotone: whether the weighting relative to a bound never rises with logsnr. Then the loss is a weighted sum of
            bounds on the likelihood of noisy data (Kingma & Gao 2023, section 4.1).
        constant: whether it is the same everywhere: the loss is the bound times a number.
        counted: names of the terms that are in all this.
        left_out: those that are not: no weighted squared error, or a factor that training finds.
    """

    logsnr: list[float]
    t: list[float]
    weights: dict[str, list[float]]
    effective: list[float]
    density: list[float]
    importance: list[float]
    effective_share: float
    gradient: list[float]
    middle_half: tuple[float, float]
    output: str
    monotone: bool
    constant: bool
    counted: tuple[str, ...]
    left_out: tuple[str, ...]


def levels(schedule: Schedule, count: int = 161, most: float = 10.0) -> Tensor:
    """About `count` logsnr from `most` down to -`most`, as far as the trained times reach; of a discrete schedule's grid."""
    inner = torch.tensor([max(schedule.t_min, 1e-6), 1 - 1e-6], dtype=torch.float64, device=schedule.device)
    ends = schedule.logsnr(inner).detach().clamp(-most, most)
    logsnr = torch.linspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64, device=schedule.device)
    if schedule.steps is None:
        return logsnr
    on_grid = schedule.logsnr(schedule.on_grid(schedule.t_of(logsnr)).clamp(schedule.t_min, 1).unique())
    return on_grid[torch.isfinite(on_grid)]


def at_levels(wanted: Sequence[float], logsnr: Sequence[float], values: Sequence[float]) -> list[float]:
    """Values known at falling levels `logsnr`, at the falling levels `wanted`: straight lines between, NaN outside."""
    y = np.interp(wanted[::-1], logsnr[::-1], values[::-1], left=math.nan, right=math.nan)
    return [float(v) for v in y[::-1]]


@torch.no_grad()
def profile(objective: Objective, logsnr: Tensor, second_moment: float) -> Profile:
    """Take an objective apart.

    Args:
        objective: any; gates count as open, learned weightings as they are now.
        logsnr: falling noise levels (N,), float64; those of `levels` suit any schedule.
        second_moment: E[x0²] of the data, mean over pixels.
    """
    denoiser, schedule = objective.denoiser, objective.denoiser.schedule
    t = schedule.t_of(logsnr)
    relative, allocation = objective.times.relative_density(schedule, t), objective.times.allocation(schedule, t)
    noise_weight, counted = _noise_weight(objective, logsnr)
    noise_weight = noise_weight * allocation
    drawn = relative.clamp(min=torch.finfo(relative.dtype).tiny)
    spaces = {s.name: s for s in (*SPACES, *(STEP_SPACES if schedule.steps else ()), denoiser.target)}
    # e^logsnr takes the weight from noise to x0, one over the gain from x0 to the space
    weights = {n: noise_weight * torch.exp(logsnr) / s.gain_at(schedule, logsnr) for n, s in spaces.items()}
    output = weights[denoiser.target.name]
    effective = objective.effective_weighting(logsnr)
    readings = [effective]
    if schedule.steps:
        readings.append(noise_weight / step_bound_weight(denoiser, logsnr))
    return Profile(
        logsnr=logsnr.tolist(),
        t=t.tolist(),
        weights={name: w.tolist() for name, w in weights.items()},
        effective=effective.tolist(),
        density=(relative / (1 - schedule.t_min) / -schedule.dlogsnr(t)).tolist(),
        importance=torch.where(allocation == relative, 1.0, allocation / relative).tolist(),
        effective_share=min(effective_shares(objective.terms, objective.times, schedule).values(), default=1.0),
        gradient=(gradient_scale(denoiser.target, schedule, t, output, second_moment) / drawn).tolist(),
        middle_half=_middle_half(objective),
        output=denoiser.target.name,
        monotone=bool(counted) and any(float((w.cummax(0).values - w).max()) <= TOLERANCE * float(w.max()) for w in readings),
        constant=bool(counted) and any(float(w.max() - w.min()) <= TOLERANCE * float(w.max()) for w in readings),
        counted=counted,
        left_out=tuple(name for name in objective.terms if name not in counted),
    )


def gradient_scale(target: Target, schedule: Schedule, t: Tensor, weight: Tensor, second_moment: float) -> Tensor:
    """RMS over pixels of (number of pixels) · d loss / d output for one image, where the network's output is 0, (N,).

    loss = w mean_pixels (y - y_hat)² has the gradient 2 w (y_hat - y)/pixels, and E[y²] = a² E[x0²] + b²: 2 w √E[y²]. Our
    networks' outputs are 0 at first. `Profile.gradient` has the sample's importance in it, as the backward pass has.

    Args:
        target: what the network predicts, y = a x0 + b noise.
        schedule: the schedule.
        t: times (N,).
        weight: w in the space of the target (N,).
        second_moment: E[x0²].
    """
    a, b = target.coefficients(schedule, t)
    return 2 * weight * torch.sqrt(a**2 * second_moment + b**2)


def step_bound_weight(denoiser: Denoiser, logsnr: Tensor) -> Tensor:
    """The weight (N,) of ‖noise - noise_hat‖² in the bound of a discrete schedule's own T steps, nats per pixel.

    Where a step changes logsnr much, at both ends of the usual tables, it is not the continuous bound's -½ d logsnr/dt; an
    objective that is monotone against either is a bound. A learned variance counts as the posterior one that it starts near.
    """
    if denoiser.variance.outputs > 1:
        denoiser = Denoiser(nn.Identity(), denoiser.schedule, denoiser.target)
    weight = VariationalBound().noise_weight(denoiser, logsnr)
    assert weight is not None
    return weight * math.log(2)


def _noise_weight(objective: Objective, logsnr: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """The sum of the terms' weights on the noise error, and the names of the terms that have one."""
    total, counted = torch.zeros_like(logsnr), []
    for name, term in objective.terms.items():
        weight = term.loss.noise_weight(objective.denoiser, logsnr)
        if weight is not None and not isinstance(term.weight, Multiplier):
            total = total + term.weight * weight
            counted.append(name)
    return total, tuple(counted)


def _middle_half(objective: Objective, cells: int = 8192) -> tuple[float, float]:
    """The quartiles of the drawn logsnr."""
    schedule = objective.denoiser.schedule
    n = schedule.steps or cells
    middle = torch.arange(n, dtype=torch.float64, device=schedule.device) + (1.0 if schedule.steps else 0.5)
    t = middle / n if schedule.steps else schedule.t_min + (1 - schedule.t_min) * middle / n
    share = objective.times.relative_density(schedule, t).cumsum(0)
    quartiles = torch.searchsorted(share, share[-1] * torch.tensor([0.75, 0.25], dtype=share.dtype, device=share.device))
    low, high = schedule.logsnr(t[quartiles]).tolist()
    return low, high
