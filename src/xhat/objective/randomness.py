"""What is random in a draw: times and noise, of generators, which no graph of torch.compile holds."""

from typing import NamedTuple

import torch
from torch import Tensor

from xhat import rng
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times import TimeSampler
from xhat.rng import Shard
from xhat.tensors import to_device


class Random(NamedTuple):
    """Of the samples of a call.

    Attributes:
        t: times (B,).
        importance: of them, (B,).
        noise: (B, ...).
        perturbed: more noise, for what the network is shown; None where that is z.
    """

    t: Tensor
    importance: Tensor
    noise: Tensor
    perturbed: Tensor | None


class Begun(NamedTuple):
    """What a call of an objective begins with.

    Attributes:
        step: number of the training step.
        shard: the place of its samples.
        opens_step: whether it is the step's first call.
        gates: factor of each term's gate, by name.
        random: see `Random`.
    """

    step: int
    shard: Shard
    opens_step: bool
    gates: dict[str, float]
    random: Random


def random_of(
    x0: Tensor,
    times: TimeSampler,
    schedule: Schedule,
    seed: int,
    step: int,
    generator: torch.Generator | None,
    shard: Shard,
    *,
    perturbed: bool,
) -> Random:
    """A function of (seed, step, sample), or of what a generator has given before.

    Args:
        x0: the samples (B, ...), for their shape.
        times: the sampler.
        schedule: whose times.
        seed: see above.
        step: see above.
        generator: in place of the seed.
        shard: the place of the samples in the step.
        perturbed: whether there is more noise.
    """
    own = slice(shard.first, shard.first + x0.shape[0])
    if generator is None:
        later = (shard.before,) if shard.before else ()
        time_generator = rng.generator(seed, "times", step, *later)
    else:  # times are drawn on the CPU, the given generator may live elsewhere
        start = torch.randint(2**62, (), generator=generator, device=generator.device)
        time_generator = torch.Generator().manual_seed(int(start))
    drawn = times.sample(schedule, shard.total, time_generator, step=step)
    t, importance = (to_device(x if x0.shape[0] == shard.total else x[own], x0.device) for x in drawn)
    noise = noise_like(x0, "noise", seed, step, shard.number, generator)
    more = noise_like(x0, "perturbation", seed, step, shard.number, generator) if perturbed else None
    return Random(t, importance, noise, more)


def noise_like(x0: Tensor, purpose: str, seed: int, step: int, first: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise like x0, whose first sample is number `first` of its step."""
    if generator is not None:
        return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return rng.normal(tuple(x0.shape), seed, purpose, step, first=first, device=x0.device).to(x0.dtype)
