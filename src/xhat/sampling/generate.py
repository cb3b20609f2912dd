"""Samples of a trained denoiser as uint8 images."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import rng
from xhat.budgets import require_memory
from xhat.data.images import to_uint8
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.diffusion.sharded import gathered
from xhat.distributed import ALONE, Shares
from xhat.sampling.compiled import compiled
from xhat.sampling.guidance import Guided
from xhat.sampling.memory import rows_that_fit
from xhat.sampling.sample import sample
from xhat.sampling.samplers import Sampler
from xhat.tensors import device_of


@dataclass(frozen=True)
class Sampling:
    """How samples are made.

    Attributes:
        sampler: the rule of a step.
        times: of the steps, from 1 to 0.
        guidance: classifier-free guidance scale; 1 is none.
    """

    sampler: Sampler
    times: Tensor
    guidance: float = 1.0

    def generate(
        self,
        denoiser: Denoiser,
        shape: DataShape,
        n: int,
        *,
        seed: int = 0,
        label: int | None = None,
        cond: Condition | None = None,
        batch: int | None = None,
        compile: bool = False,
        progress: Callable[[int], None] | None = None,
        shares: Shares = ALONE,
    ) -> tuple[Tensor, Tensor | None]:
        """`generate` this way."""
        return generate(
            denoiser,
            self.sampler,
            shape,
            n,
            times=self.times,
            guidance=self.guidance,
            seed=seed,
            label=label,
            cond=cond,
            batch=batch,
            compile=compile,
            progress=progress,
            shares=shares,
        )


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    sampler: Sampler,
    shape: DataShape,
    n: int,
    *,
    times: Tensor,
    guidance: float = 1.0,
    seed: int = 0,
    label: int | None = None,
    cond: Condition | None = None,
    batch: int | None = None,
    compile: bool = False,
    progress: Callable[[int], None] | None = None,
    shares: Shares = ALONE,
) -> tuple[Tensor, Tensor | None]:
    """Make n samples; sample k depends on (seed, k) alone, and has class k mod classes if the model is conditional.

    Args:
        denoiser: the model.
        sampler: its rule.
        shape: of the data.
        n: how many.
        times: of the steps, from 1 to 0.
        guidance: classifier-free guidance scale.
        seed: of the noise.
        label: class of all of them, 0 to classes - 1; by default all classes in turn.
        cond: values of what else the model is told, `shape.conditions`, (m, ...) each: sample k has row k mod m.
        batch: samples at a time, at most; by default 125, of large ones as many as memory has room for, see `rows_that_fit`.
            Batches are as equal as can be.
        compile: compile the network first, which takes some twenty seconds and repays them in thousands of samples. The
            last batch is then filled up with samples that nobody asked for, so that all have one shape.
        progress: called with the number of images done so far.
        shares: of several processes, who draws which batches: `shared_out()` has all of them take part, and be given all.

    Returns:
        Samples (n, ...), uint8 images or floats, as the data are, fields in the user's units; and their
        labels (n,), None for unconditional models.

    Raises:
        ValueError: the model has no such class, is told something that has no values here, or cannot be compiled.
    """
    lacking = [name for name in shape.conditions if name not in (cond or {})]
    if lacking:
        raise ValueError(f"the model is told {', '.join(lacking)}: give values in cond, for example those of some data")
    if label is not None and not 0 <= label < (shape.classes or 0):
        raise ValueError(f"label {label}: the model has {shape.classes or 'no'} classes")
    batch = shares.part(n, batch or rows_at_a_time(denoiser, sampler, times, shape, guidance, cond, shares))
    batch = -(-n // max(1, -(-n // batch)))
    size = 4 * n * math.prod(shape.sample)
    require_memory(size, f"{n:,} samples {shape.sample}", "draw fewer at a time, with different seeds")
    labels = _labels(shape, 0, n, label)
    done: list[Tensor] = []

    def drawn(first: int) -> Tensor:
        count = batch if compile else min(batch, n - first)
        part = _Batch(denoiser, shape, guidance, first, count, seed, label, cond)
        return as_kept(part.run(sampler, times), shape).cpu()[: n - first]

    with gathered(denoiser.net), compiled(denoiser.net) if compile else nullcontext():
        for part in shares.map(drawn, range(0, n, batch)):
            done.append(part)
            if progress is not None:
                progress(sum(map(len, done)))
    return torch.cat(done), labels


def rows_at_a_time(
    denoiser: Denoiser,
    sampler: Sampler,
    times: Tensor,
    shape: DataShape,
    guidance: float,
    cond: Condition | None,
    shares: Shares,
) -> int:
    """How many samples `generate` draws at a time, if nobody says so: as many as every process has room for."""
    one, latents = _Batch(denoiser, shape, guidance, 0, 1, 0, cond=cond), denoiser.decode is not None
    own = rows_that_fit(lambda: one.run(sampler, times[:2]), one.size[1:], one.device, latents=latents)
    return min(shares.map(lambda _: own, range(shares.count)))


def as_kept(samples: Tensor, shape: DataShape) -> Tensor:
    """Samples as the user has them: 8-bit pixels, fields in their units, other floats as they are."""
    if shape.units is not None:
        return shape.units(samples)
    return to_uint8(samples) if shape.is_eight_bit else samples


@torch.no_grad()
def trajectory(
    denoiser: Denoiser,
    how: Sampling,
    shape: DataShape,
    n: int,
    columns: int = 8,
    seed: int = 0,
    cond: Condition | None = None,
) -> tuple[Tensor, list[float]]:
    """What the denoiser believes on the way: x0_hat of the first n samples of `generate` at times from 1 on, and the results.

    Args:
        denoiser: the model.
        how: sampler, times and guidance.
        shape: of the images.
        n: samples.
        columns: of the picture, at most; the last one is the result, t = 0.
        seed: of the noise.
        cond: as of `generate`.

    Returns:
        Samples (n, K, ...) as of `generate`, and the K times.
    """
    times, steps = how.times, len(how.times) - 1
    part = _Batch(denoiser, shape, how.guidance, 0, n, seed, cond=cond)
    seen = torch.linspace(0, steps, min(columns, steps + 1)).round().long().tolist()
    believed = [part.x0_hat(part.start, times[0])]

    def look(step: int, z: Tensor) -> None:
        if step in seen:
            believed.append(part.x0_hat(z, times[step]) if step < steps else z)

    part.run(how.sampler, times, look)
    return torch.stack([as_kept(x, shape).cpu() for x in believed], 1), times[seen].clamp(min=0).tolist()


class _Batch:
    """The samples number first, ..., first + count - 1 of a seed: their start, their labels, the guided model."""

    def __init__(
        self,
        denoiser: Denoiser,
        shape: DataShape,
        guidance: float,
        first: int,
        count: int,
        seed: int,
        label: int | None = None,
        cond: Condition | None = None,
    ) -> None:
        device = device_of(denoiser.net)
        null = denoiser.null or ({"label": shape.classes} if shape.classes else None)
        self.model = Guided(denoiser, guidance, null) if null or shape.conditions else denoiser
        labels = _labels(shape, first, count, label)
        rows = torch.arange(first, first + count)
        told = {name: (cond or {})[name] for name in shape.conditions}
        told = {name: value[rows.to(value.device) % len(value)].to(device) for name, value in told.items()}
        told |= {} if labels is None else {"label": labels.to(device)}
        self.cond = told or None
        self.size = (count, *shape.sample)
        self.seed, self.first, self.device = seed, first, device
        top = denoiser.schedule.prior_std().detach().to(device, torch.float32)
        self.start = top * rng.normal(self.size, seed, "sample", first=first, device=device)

    def run(self, sampler: Sampler, times: Tensor, callback: Callable[[int, Tensor], None] | None = None) -> Tensor:
        times, sampler = times.to(self.device), sampler.rows(torch.arange(self.first, self.first + self.size[0]))
        return sample(self.model, sampler, self.start, times, cond=self.cond, noise=self._fresh, callback=callback)

    def _fresh(self, step: int) -> Tensor:
        """The noise of a step of a stochastic sampler: that of sample k is a function of (seed, k, step) alone."""
        return rng.normal(self.size, self.seed, "sampling", step, first=self.first, device=self.device)

    def x0_hat(self, z: Tensor, t: Tensor) -> Tensor:
        return self.model.given(self.cond)(z, t.to(z.device).expand(len(z))).x0


def _labels(shape: DataShape, first: int, count: int, label: int | None) -> Tensor | None:
    """The classes of samples first, ..., first + count - 1: one for all, or all in turn; None for unconditional models."""
    if not shape.classes:
        return None
    return torch.arange(first, first + count) % shape.classes if label is None else torch.full((count,), label)
