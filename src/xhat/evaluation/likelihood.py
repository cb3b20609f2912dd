"""The likelihood of real images under a model, in bits/dim: the variational bound, and the probability-flow ODE."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import rng
from xhat.bound.decoders import Decoder, Volume, density_decoder
from xhat.bound.density import rows_of
from xhat.bound.estimate import BoundEstimate, Progress, estimate_bound
from xhat.bound.ode import AsDensity, Dequantization, TruncatedNormal, Uniform, ode_likelihood
from xhat.bound.student import limits, standard_error
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.distributed import ALONE, Shares
from xhat.errors import UsageError
from xhat.evaluation.reference import RealImages

EVALUATIONS = 8
"""Network calls for the bound of an image."""

ODE_BATCH = 64


@dataclass(frozen=True)
class Chosen:
    """Images to measure, and others for the pilot of the bound.

    Attributes:
        x0: images (n, C, H, W).
        cond: their labels for the network.
        pilot: other images.
        pilot_cond: their labels.
        available: how many there would have been to measure.
    """

    x0: Tensor
    cond: Condition | None
    pilot: Tensor
    pilot_cond: Condition | None
    available: int


def choose_at_random(real: RealImages, n: int | None, pilot: int, seed: int, device: torch.device) -> Chosen:
    """Random images; the pilot's are among the others, or where there are none a fifth of those that could be measured.

    Args:
        real: where they are from.
        n: images, at most; None is all.
        pilot: images for the pilot, at most.
        seed: of the choice.
        device: where to.

    Raises:
        UsageError: too few images to leave some to the pilot.
    """
    other = real.others or real.measured
    order = torch.randperm(len(real.measured), generator=rng.generator(seed, "bound images"))
    if real.others is not None:
        aside = torch.randperm(len(other), generator=rng.generator(seed, "pilot images"))[:pilot]
    else:
        count = min(pilot, len(order) // 5)
        if count < 1 or len(order) - count < 2:
            name = real.measured.images.name
            raise UsageError(f"{name} has {len(order)} images: give at least 5, a fifth of them for the pilot")
        aside, order = order[:count], order[count:]
    measured, others = real.measured.chosen(order[:n], device), other.chosen(aside, device)
    return _chosen(measured, others, len(order))


def choose_first(real: RealImages, n: int, pilot: int, device: torch.device) -> Chosen:
    """The first n images, and for the pilot the first of the others, or of the same where there are no others."""
    other = real.others or real.measured
    return _chosen(real.measured.first(n, device), other.first(pilot, device), len(real.measured))


def _chosen(measured: tuple[Tensor, Condition | None], pilot: tuple[Tensor, Condition | None], available: int) -> Chosen:
    return Chosen(*measured, *pilot, available)


def bound(
    denoiser: Denoiser,
    chosen: Chosen,
    *,
    evaluations: int | None = EVALUATIONS,
    standard_error: float = 0.0,
    steps: float | None = None,
    decoder: Decoder | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    report: Callable[[Progress, float], None] | None = None,
    shares: Shares = ALONE,
) -> BoundEstimate:
    """`estimate_bound` of the chosen images.

    Args:
        denoiser: the model, in evaluation mode.
        chosen: images and pilot.
        evaluations: network calls per image; None takes every step.
        standard_error: as many images as this standard error takes; 0 measures all.
        steps: T, or math.inf; None is the schedule's own, or 1000.
        decoder: that of 8-bit images by default, see `form_for`.
        seed: of all draws.
        progress: of an interrupted measurement, to go on from.
        report: called after each batch of images.
        shares: of several processes, who measures which images.

    Raises:
        ValueError: as `estimate_bound`.
    """
    return estimate_bound(
        denoiser,
        chosen.x0,
        chosen.pilot,
        evaluations=evaluations,
        standard_error=standard_error,
        steps=steps,
        decoder=decoder,
        cond=chosen.cond,
        pilot_cond=chosen.pilot_cond,
        seed=seed,
        progress=progress,
        report=report,
        shares=shares,
    )


def is_density(denoiser: Denoiser, shape: DataShape) -> bool:
    """Whether the likelihood of such data is a density: of floats in the user's units, not of 8-bit images, nor of latents."""
    return not shape.is_eight_bit and denoiser.decode is None


def form_for(denoiser: Denoiser, shape: DataShape) -> tuple[Decoder | None, float | None]:
    """Decoder and steps of the bound by default: None is that of 8-bit images.

    A density has infinitely many steps in continuous time: the first few of a thousand go through most noise levels of floats.
    """
    if not is_density(denoiser, shape):
        return None, None
    decoder = density_decoder(denoiser.schedule, _volume(shape))
    return decoder, math.inf if denoiser.schedule.steps is None else None


def dequantizations_for(denoiser: Denoiser, shape: DataShape) -> tuple[Dequantization, ...]:
    """Two of 8-bit images, whose smaller bound counts; of floats none, the density itself."""
    return (AsDensity(_volume(shape)),) if is_density(denoiser, shape) else (Uniform(), TruncatedNormal())


def _volume(shape: DataShape) -> Volume | None:
    return None if shape.units is None else shape.units.volume


@dataclass(frozen=True)
class OdeEstimate:
    """The mean likelihood of images by the ODE, bits/dim, under the better of two dequantizations.

    Attributes:
        bits_per_dim: the smaller of two bounds.
        bits_per_dim_se: its standard error over images.
        limits: the 95 % interval, by Student's t.
        network_evaluations_per_image: network calls, of both together.
        images: number of images.
        dequantization: the better one's name.
        other_dequantization: the other one's; None of fields.
        other_bits_per_dim: its bound.
    """

    bits_per_dim: float
    bits_per_dim_se: float
    limits: tuple[float, float]
    network_evaluations_per_image: float
    images: int
    dequantization: str
    other_dequantization: str | None
    other_bits_per_dim: float | None


def ode(
    denoiser: Denoiser,
    chosen: Chosen,
    *,
    dequantizations: Sequence[Dequantization] = (Uniform(), TruncatedNormal()),
    seed: int = 0,
    report: Callable[[int], None] = lambda images: None,
    shares: Shares = ALONE,
) -> OdeEstimate:
    """The ODE likelihood of the chosen images: Hutchinson's trace with one probe, the better of two dequantizations.

    Args:
        denoiser: the model, in evaluation mode.
        chosen: images; the pilot is not used.
        dequantizations: see `dequantizations_for`.
        seed: of dequantizations and probes.
        report: called after each batch with the number of its images; every image is measured twice.
        shares: of several processes, who measures which images.

    Raises:
        ValueError: as `ode_likelihood`.
    """
    bits, calls = {}, 0.0
    for dequantization in dequantizations:
        bits[dequantization.name], its = _ode_bits(denoiser, chosen, dequantization, seed, report, shares)
        calls += its
    best, *others = sorted(bits, key=lambda name: float(bits[name].mean()))
    mean, error, count = float(bits[best].mean()), standard_error(bits[best]), len(chosen.x0)
    interval = limits(mean, error, count)
    other = others[0] if others else None
    second = None if other is None else float(bits[other].mean())
    return OdeEstimate(mean, error, interval, calls / count, count, best, other, second)


def _ode_bits(
    denoiser: Denoiser,
    chosen: Chosen,
    dequantization: Dequantization,
    seed: int,
    report: Callable[[int], None],
    shares: Shares,
) -> tuple[Tensor, float]:
    """Bits/dim of every image (n,), and the network calls of all."""

    def measured(first: int) -> tuple[Tensor, float]:
        some = slice(first, first + ODE_BATCH)
        own = rng.generator(seed, first).initial_seed() % 2**31
        cond = rows_of(chosen.cond, some)
        found = ode_likelihood(denoiser, chosen.x0[some], dequantization=dequantization, cond=cond, seed=own)
        return found.bits_per_dim.cpu(), found.network_evaluations

    values, calls = [], 0.0
    for bits, evaluations in shares.map(measured, range(0, len(chosen.x0), ODE_BATCH)):
        values.append(bits)
        calls += evaluations * len(bits)
        report(len(bits))
    return torch.cat(values), calls
