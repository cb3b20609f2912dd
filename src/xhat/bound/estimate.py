"""The bound of a data set from a few steps per image: unbiased, with a standard error, and resumable."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from xhat import rng
from xhat.bound import student
from xhat.bound.control import Control, cells, image_features
from xhat.bound.decoders import Decoder
from xhat.bound.density import Pilot, noise_ratio, pilot_draws, rows_of, run_pilot
from xhat.bound.exact import Bound, evaluate, require_finite
from xhat.bound.terms import Form, StepForm, bits_per_dim, form_of
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.distributed import ALONE, Shares

FIRST_STAGE = 256  # images, of the pilot's, whose spread fixes how many are measured
FAR = 20.0  # logsnr of the curve's ends


@dataclass(frozen=True)
class Curve:
    """Where the bits are: neighbouring steps in cells.

    Attributes:
        first: the first step of each cell, 1-based.
        last: its last step.
        logsnr: at the middle of the cell, whose ends are kept within ±20: at pure noise it is -inf.
        logsnr_width: of the cell.
        bits_per_dim: all of the cell's steps together.
    """

    first: list[int]
    last: list[int]
    logsnr: list[float]
    logsnr_width: list[float]
    bits_per_dim: list[float]


@dataclass(frozen=True)
class BoundEstimate:
    """The mean bound over images, bits/dim.

    Attributes:
        bits_per_dim: prior + diffusion + reconstruction.
        bits_per_dim_se: standard error of the mean over images: their own spread and that of the steps drawn.
        limits: the 95 % interval, by Student's t.
        prior: its part L_T.
        diffusion: its KL part.
        reconstruction: its decoder part.
        per_image: the three parts of each image.
        network_evaluations_per_image: network calls.
        pilot_evaluations: network calls on other images, in all.
        images: number of images.
        steps: T, or None for the integral of continuous time.
        curve: bits per step.
    """

    bits_per_dim: float
    bits_per_dim_se: float
    limits: tuple[float, float]
    prior: float
    diffusion: float
    reconstruction: float
    per_image: Bound
    network_evaluations_per_image: int
    pilot_evaluations: int
    images: int
    steps: int | None
    curve: Curve


@dataclass
class Progress:
    """What an estimate has so far.

    Attributes:
        pilot: the frozen density and control variate; None before the pilot, or if every step is taken.
        terms: prior, diffusion, reconstruction in nats of each image done, (images done, 3).
        by_cell: nats per cell of steps, summed over images.
        wanted: a standard error, and the images to be measured for it; None before they are known.
    """

    pilot: Pilot | None = None
    terms: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.float64))
    by_cell: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    wanted: tuple[float, int] | None = None


@torch.no_grad()
def estimate_bound(
    denoiser: Denoiser,
    x0: Tensor,
    pilot: Tensor | None = None,
    *,
    evaluations: int | None = 8,
    standard_error: float = 0.0,
    steps: float | None = None,
    decoder: Decoder | None = None,
    cond: Condition | None = None,
    pilot_cond: Condition | None = None,
    seed: int = 0,
    rows: int = 512,
    draws: int | None = None,
    progress: Progress | None = None,
    report: Callable[[Progress, float], None] | None = None,
    shares: Shares = ALONE,
) -> BoundEstimate:
    """Estimate the mean bound of images with a few network calls each.

    sum_i part_i = E[part_I / p_I]: each image draws `evaluations` steps, one in each of so many strata of equal probability
    under a density found on other images (`run_pilot`), shifted by a uniform number of its own. Shifts are independent
    between images, so that the spread of the images' values gives a valid standard error, which within one systematic
    sample does not exist. What a linear control variate knows of a part (`Control`) is subtracted where it is drawn and
    added for all parts, exactly. The noises of an image's draws lie apart, in each pixel (`rng.stratified`), and draws 1 and 2,
    3 and 4, .. have opposite ones where the pilot found most to be odd in the noise: each alone is standard normal, so that the
    mean of their sum is what it was. Image k's draws depend on (seed, k) alone.

    Args:
        denoiser: the model.
        x0: images (N, C, H, W) in [-1, 1].
        pilot: other images, for the density; needed unless every step is taken.
        evaluations: steps per image; None takes every step (in continuous time, one in each of 1000 parts).
        standard_error: as many images as it takes to reach this, by a first stage on pilot images, but at most all; 0
            measures all. A rule that looks at the error of what it measures would stop where that is too small by chance.
        steps: T; by default the schedule's own, or 1000; math.inf is the continuous-time bound.
        decoder: as for `variational_bound`.
        cond: keyword arguments of the network, one row per image.
        pilot_cond: the same for the pilot images.
        seed: of all draws.
        rows: images per network call.
        draws: of the pilot, per cell of steps and round; by default 48 to 176, the more the larger the measurement.
        progress: of an estimate with the same arguments, to go on from.
        report: called after each batch of images with the progress and the standard error so far.
        shares: of several processes, who measures which images: `shared_out()` has all of them take part, and be given all.

    Raises:
        ValueError: as `variational_bound`; or no pilot, one of too few draws or images, or fewer than two images.
    """
    form = form_of(denoiser.schedule, steps, decoder)
    if len(x0) < 2:
        raise ValueError(f"a standard error needs at least 2 images, got {len(x0)}")
    if evaluations is not None and (evaluations < 1 or pilot is None or len(pilot) < 1):
        raise ValueError("estimate_bound needs at least 1 evaluation per image, and pilot images to find where; None takes all")
    if standard_error and (pilot is None or len(pilot) < 2):
        raise ValueError("standard_error needs at least 2 pilot images, whose spread says how many images are to be measured")
    form.decoder.require_data(x0)
    progress = progress or Progress()
    if evaluations is not None and progress.pilot is None:
        assert pilot is not None
        if draws is None:
            draws = pilot_draws(form.count, evaluations * len(x0))
        how = partial(run_pilot, seed=seed, draws=draws, evaluations=evaluations, rows=rows, shares=shares)
        progress.pilot = how(form, denoiser, pilot, pilot_cond)
    plan = _Plan(form, evaluations, progress.pilot if evaluations is not None else None, seed)
    ends = cells(form.count)
    if not len(progress.by_cell):
        progress.by_cell = torch.zeros(len(ends), dtype=torch.float64)
    group = shares.part(len(x0), max(1, rows // min(plan.calls, rows)))
    if standard_error and (progress.wanted is None or progress.wanted[0] != standard_error):
        assert pilot is not None
        spread = _first_stage(plan, denoiser, pilot, pilot_cond, ends, rows, group, shares)
        progress.wanted = standard_error, min(len(x0), student.images_needed(spread, standard_error))
    most = progress.wanted[1] if standard_error and progress.wanted else len(x0)

    def measured(done: int) -> tuple[Tensor, Tensor]:
        some = slice(done, min(done + group, most))
        return _measure(plan, denoiser, x0[some], done, rows_of(cond, some), ends, rows)

    for terms, by_cell in shares.map(measured, range(len(progress.terms), most, group)):
        require_finite(*terms.T)
        progress.terms = torch.cat([progress.terms, terms])
        progress.by_cell = progress.by_cell + by_cell
        if report is not None:
            report(progress, student.standard_error(bits_per_dim(progress.terms.sum(1), x0)))
    return _result(plan, progress, x0, ends)


@dataclass(frozen=True)
class _Plan:
    """Which parts each image is measured at."""

    form: Form
    evaluations: int | None
    pilot: Pilot | None
    seed: int

    @property
    def calls(self) -> int:
        """Network calls per image."""
        return self.evaluations or self.form.count

    @property
    def control(self) -> Control:
        """What is known without a network call."""
        return self.pilot.control if self.pilot else Control.none(self.form.count)

    def noise(self, shape: tuple[int, ...], first: int, device: torch.device) -> Tensor:
        """Of the draws number first, first + 1, ..; all images' draws are counted through."""
        key = self.seed, "estimate"
        if self.pilot is None:
            return rng.normal(shape, *key, first=first, device=device)
        return rng.stratified(shape, *key, first=first, per=self.calls, opposite=self.pilot.opposite, device=device)

    def choose(self, first: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """For images first, ..: part, place in it, factor 1/(calls · p), each (images · calls,)."""
        numbers = range(first, first + images)
        if self.pilot is None:
            index = torch.arange(1, self.form.count + 1).repeat(images)
            u = torch.cat([self._uniform(self.form.count, "place", k) for k in numbers])
            return index, u, torch.ones_like(u)
        shifts = torch.stack([self._uniform(1, "shift", k) for k in numbers])
        position = (torch.arange(self.calls, dtype=torch.float64) + shifts) / self.calls
        index, u, chance = self.pilot.choose(position.flatten())
        return index, u, 1 / (self.calls * chance)

    def _uniform(self, n: int, purpose: str, image: int) -> Tensor:
        return torch.rand(n, dtype=torch.float64, generator=rng.generator(self.seed, purpose, image))


def _measure(
    plan: _Plan, denoiser: Denoiser, x0: Tensor, first: int, cond: Condition | None, ends: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Terms (images, 3) and nats per cell, of images number `first` on."""
    form, device, calls, control = plan.form, x0.device, plan.calls, plan.control
    index, u, factor = plan.choose(first, len(x0))
    owner = torch.arange(len(x0)).repeat_interleave(calls)
    known = image_features(x0)
    rest = []
    for start in range(0, len(index), rows):
        own = slice(start, min(start + rows, len(index)))
        images = x0[owner[own].to(device)]
        noise = plan.noise(tuple(images.shape), first * calls + start, device)
        some = rows_of(cond, owner[own])
        noise, at, place = noise.to(x0.dtype), index[own].to(device), u[own].to(device)
        value = evaluate(form, denoiser, images, noise, at, place, some).cpu()
        ratio = noise_ratio(denoiser, form.times(at, place))
        rest.append(value - control.of(index[own], known[owner[own]], images, noise, ratio))
    value = torch.cat(rest) * factor
    last = rng.normal(tuple(x0.shape), plan.seed, "decoder", first=first, device=device).double()
    prior, reconstruction = (v.cpu() for v in form.outside(x0.double(), last))
    into = int(form.decoder.calls_network)  # part 1 is then the reconstruction
    diffusion = (known @ control.constant[into:].sum(0)).index_add(0, owner, torch.where(index > into, value, 0.0))
    reconstruction = reconstruction + known @ control.constant[:into].sum(0)
    reconstruction = reconstruction.index_add(0, owner, torch.where(index > into, 0.0, value))
    cell = torch.searchsorted(ends, torch.arange(1, form.count + 1))
    by_cell = torch.zeros(len(ends), dtype=torch.float64).index_add_(0, cell, control.constant @ known.sum(0))
    by_cell = by_cell.index_add_(0, cell[index - 1], value)
    return torch.stack([prior, diffusion, reconstruction], dim=1), by_cell


def _first_stage(
    plan: _Plan, denoiser: Denoiser, pilot: Tensor, cond: Condition | None, ends: Tensor, rows: int, group: int, shares: Shares
) -> Tensor:
    """Bits/dim of pilot images (m,), measured as the others will be, with draws of their own."""
    own = replace(plan, seed=rng.generator(plan.seed, "first stage").initial_seed())

    def measured(first: int) -> Tensor:
        some = slice(first, min(first + group, FIRST_STAGE))
        return _measure(own, denoiser, pilot[some], first, rows_of(cond, some), ends, rows)[0]

    found = list(shares.map(measured, range(0, min(FIRST_STAGE, len(pilot)), group)))
    bits = bits_per_dim(torch.cat(found).sum(1), pilot)
    if not bool(torch.isfinite(bits).all()):
        raise ValueError("diffusion: the bound of the pilot's images is not finite: the network's output is far too large")
    return bits


def _result(plan: _Plan, progress: Progress, x0: Tensor, ends: Tensor) -> BoundEstimate:
    form, terms = plan.form, bits_per_dim(progress.terms, x0)
    total = terms.sum(1)
    mean, error = float(total.mean()), student.standard_error(total)
    prior, diffusion, reconstruction = terms.T
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    half = torch.full((len(ends),), 0.5, dtype=torch.float64)
    schedule = form.schedule

    def logsnr(part: Tensor, u: Tensor) -> Tensor:
        inside = form.times(part, u).clamp(schedule.t_min, 1 - 1e-9)  # logsnr(1) may be -inf
        return schedule.logsnr(inside.to(schedule.device)).cpu().clamp(-FAR, FAR)

    lowest = starts if isinstance(form, StepForm) else starts + 1
    high, low = logsnr(lowest, 0 * half), logsnr(ends, 1 - 1e-9 * half)
    middle = (high + low) / 2
    curve = Curve(
        first=(starts + 1).tolist(),
        last=ends.tolist(),
        logsnr=middle.tolist(),
        logsnr_width=(high - low).tolist(),
        bits_per_dim=bits_per_dim(progress.by_cell / len(terms), x0).tolist(),
    )
    return BoundEstimate(
        bits_per_dim=mean,
        bits_per_dim_se=error,
        limits=student.limits(mean, error, len(terms)),
        prior=float(prior.mean()),
        diffusion=float(diffusion.mean()),
        reconstruction=float(reconstruction.mean()),
        per_image=Bound(prior, diffusion, reconstruction),
        network_evaluations_per_image=plan.calls,
        pilot_evaluations=progress.pilot.evaluations if progress.pilot else 0,
        images=len(terms),
        steps=form.schedule.steps or (form.count if isinstance(form, StepForm) else None),
        curve=curve,
    )
