"""Gradients looked at: of each term at each noise level, and along a chain of sampling steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.data.batch import Extra
from xhat.diffusion.denoiser import Condition
from xhat.losses.chains import FullChain
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import Paired
from xhat.objective.draw import Draw
from xhat.objective.multipliers import Multiplier, flat_gradient
from xhat.objective.objective import Objective
from xhat.sampling.differentiate import AllSteps
from xhat.sampling.sample import sample
from xhat.sampling.samplers import DDIM
from xhat.sampling.spacings import uniform_times

LEVELS = 9


@dataclass(frozen=True)
class TermProfile:
    """A term's gradient with respect to the denoiser's parameters.

    Attributes:
        norm: of the gradient of the unweighted mean, at each level; for a term that depends on no level the same everywhere.
        cosine: to the gradient of the base, the other terms whose weights are numbers; NaN where one of them is 0.
    """

    norm: list[float]
    cosine: list[float]


@dataclass(frozen=True)
class ChainProfile:
    """d penalty / d z along a whole chain: the product of the steps' Jacobians from z on.

    Attributes:
        t: of each z, from 1 to 0.
        norm: of the gradient of one image's penalty with respect to its z, root mean square over images.
    """

    t: list[float]
    norm: list[float]


@dataclass(frozen=True)
class GradientProfile:
    """What `gradient_profile` found.

    Attributes:
        logsnr: the noise levels.
        terms: by name.
        chains: by name of the term with a penalty.
    """

    logsnr: list[float]
    terms: dict[str, TermProfile]
    chains: dict[str, ChainProfile]


def gradient_profile(
    objective: Objective,
    x0: Tensor,
    *,
    cond: Condition | None = None,
    extra: Extra | None = None,
    logsnr: Tensor | None = None,
    chains: Mapping[str, ImageLoss] | None = None,
    steps: int = 20,
    step: int = 0,
) -> GradientProfile:
    """Gradient norms and cosines at each noise level, and along the chains of image losses.

    Args:
        objective: of any terms.
        x0: one batch of images (B, C, H, W) in [-1, 1].
        cond: keyword arguments of the network.
        extra: what terms and penalties see as `draw.extra`.
        logsnr: noise levels (L,); by default nine from the highest to the lowest of -6 .. 8 that the schedule has.
        chains: image losses whose penalty is followed down a chain; by default those of the objective that need no
            clean image. A loss that has no full chain is given one of DDIM.
        steps: of that chain.
        step: whose noise is used.
    """
    schedule, parameters = objective.denoiser.schedule, [p for p in objective.denoiser.parameters() if p.requires_grad]
    logsnr = default_levels(objective) if logsnr is None else logsnr
    times = schedule.on_grid(schedule.t_of(logsnr.to(schedule.device, torch.float64))).clamp(schedule.t_min, 1).detach()
    numbers = {n: t.weight for n, t in objective.terms.items() if not isinstance(t.weight, Multiplier)}
    norms: dict[str, list[float]] = {name: [] for name in objective.terms}
    cosines: dict[str, list[float]] = {name: [] for name in objective.terms}
    for t in times:
        at = t.to(x0.device).expand(len(x0))
        found = {}
        for name in objective.terms:  # a draw for each: the graph of one call is in memory at a time
            draw = objective.draw_at(x0, at, step=step, cond=cond, extra=extra)
            found[name] = flat_gradient(objective.per_image(name, draw).mean(), parameters).detach()
        for name, own in found.items():
            others = [weight * found[n] for n, weight in numbers.items() if n != name]
            base = torch.stack(others).sum(0) if others else torch.zeros_like(own)
            both = float(own.norm() * base.norm())
            norms[name].append(float(own.norm()))
            cosines[name].append(float(own @ base) / both if both > 0 else math.nan)
    if chains is None:
        images = {n: t.loss for n, t in objective.terms.items() if isinstance(t.loss, ImageLoss)}
        chains = {n: loss for n, loss in images.items() if not isinstance(loss.penalty, Paired)}
    draw = objective.draw_at(x0, times[0].to(x0.device).expand(len(x0)), step=step, cond=cond, extra=extra)
    return GradientProfile(
        logsnr=schedule.logsnr(times).detach().tolist(),
        terms={name: TermProfile(norms[name], cosines[name]) for name in objective.terms},
        chains={name: _along(objective, loss, draw, steps) for name, loss in chains.items()},
    )


def default_levels(objective: Objective, count: int = LEVELS) -> Tensor:
    """(count,) noise levels from high to low noise, evenly spaced in logsnr, within the trained times."""
    schedule = objective.denoiser.schedule
    reach = torch.tensor([1 - 1e-6, max(schedule.t_min, 1e-6)], dtype=torch.float64, device=schedule.device)
    ends = schedule.logsnr(reach).detach().clamp(-6, 8)
    return torch.linspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64)


def _along(objective: Objective, loss: ImageLoss, draw: Draw, steps: int) -> ChainProfile:
    """From pure noise, with every step differentiated, whatever the loss itself differentiates."""
    denoiser = objective.denoiser
    chain = loss.image if isinstance(loss.image, FullChain) else FullChain(DDIM(), steps)
    times = uniform_times(denoiser.schedule, chain.steps)
    visited = [FullChain.start(denoiser, draw).detach().requires_grad_()]
    end = sample(
        denoiser,
        chain.sampler,
        visited[0],
        times,
        differentiate=AllSteps(),
        callback=lambda _, z: visited.append(z),
        cond=draw.cond,
        noise=lambda i: draw.normal("sampler", i),
    )
    values = loss.measure(end, draw)
    gradients = torch.autograd.grad(values.sum(), visited)
    norms = [float(g.flatten(1).square().sum(1).mean().sqrt()) for g in gradients]
    return ChainProfile(times.tolist(), norms)
