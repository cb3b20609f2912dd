"""Sampling: where a chain starts, and what is at its end."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.sampling.chain import Chain
from xhat.sampling.differentiate import Differentiation, NoSteps, require
from xhat.sampling.samplers import Sampler
from xhat.tensors import to_device

_REMEDY = "pass generator=torch.Generator().manual_seed(...)"


def prior(denoiser: Denoiser, shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Samples of p(z_1) = N(0, alpha(1)² + sigma(1)²): where sampling starts. The generator must live on `device`."""
    return float(denoiser.schedule.prior_std()) * torch.randn(shape, generator=generator, device=device)


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    z: Tensor,
    times: Tensor,
    *,
    differentiate: Differentiation = NoSteps(),
    checkpoint: bool = True,
    callback: Callable[[int, Tensor], None] | None = None,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
    noise: Callable[[int], Tensor] | None = None,
    uniform: Callable[[int, str], Tensor] | None = None,
) -> Tensor:
    """Run the sampler through `times`, from z at times[0] to the result at times[-1].

    Args:
        denoiser: the model.
        sampler: the rule of a step.
        z: start, (B, C, H, W), at times[0]: see `prior`.
        times: (n + 1,), decreasing, see `uniform_times` and `karras_times`; or (n + 1, B), each image its own, where an
            image rests while its time does not change, see `rollout_times`.
        differentiate: how gradients pass: NoSteps(), AllSteps(), Last(K), Surrogate(K) or another of `xhat.differentiate`.
        checkpoint: recompute each differentiated step in the backward pass instead of keeping its activations.
        callback: called with (number of steps done, z) after each step.
        cond: keyword arguments of the network.
        generator: of all randomness, the noise of stochastic samplers and the choices of `differentiate`, where neither
            `noise` nor `uniform` says otherwise.
        noise: the noise of step i, shaped like z.
        uniform: n numbers in [0, 1) on the CPU for a purpose that has a name, such as ``draw.uniform`` of an objective's draw.

    Returns:
        The images at times[-1], (B, C, H, W), unclamped; several of each, one after the other, where `LowVariance` takes them.

    Raises:
        ValueError: times do not decrease, there are fewer of them than `differentiate` needs, or what is random has no
            generator.
    """
    falls = times.diff(dim=0)
    if len(times) < 2 or not bool(((falls < 0) if times.ndim == 1 else (falls <= 0)).all()):
        raise ValueError("times must decrease, with at least two entries, for example uniform_times(schedule, 50)")
    require(differentiate, len(times) - 1, sampler)
    if differentiate.same_times and times.ndim != 1:
        name = type(differentiate).__name__
        raise ValueError(f"{name} needs times (n + 1,), the same for all images: use AllSteps() for times of each image")
    chain = chain_of(
        denoiser,
        sampler,
        z,
        times,
        checkpoint=checkpoint,
        callback=callback,
        cond=cond,
        generator=generator,
        noise=noise,
        uniform=uniform,
    )
    return differentiate.run(chain)


def chain_of(
    denoiser: Denoiser,
    sampler: Sampler,
    z: Tensor,
    times: Tensor,
    *,
    checkpoint: bool = True,
    callback: Callable[[int, Tensor], None] | None = None,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
    noise: Callable[[int], Tensor] | None = None,
    uniform: Callable[[int, str], Tensor] | None = None,
) -> Chain:
    """The steps that `sample` takes, ready to be run; arguments as there. Nobody looks at the times.

    Raises:
        ValueError: what is random has no generator.
    """
    if sampler.stochastic and generator is None and noise is None:
        raise ValueError(f"{sampler} needs noise: {_REMEDY}")
    own = _Randomness(generator, z)
    model, times = denoiser.given(cond), to_device(times, z.device)
    return Chain(model, sampler, z, times, noise or own.noise, uniform or own.uniform, checkpoint, callback)


@dataclass(frozen=True)
class _Randomness:
    """What a chain needs of it, from one generator; the noise is shaped like z."""

    generator: torch.Generator | None
    like: Tensor

    def noise(self, step: int) -> Tensor:
        z = self.like
        if self.generator is None:
            raise ValueError(f"noise is random: {_REMEDY}")
        return torch.randn(z.shape, generator=self.generator, device=z.device, dtype=z.dtype)

    def uniform(self, n: int, purpose: str) -> Tensor:
        if self.generator is None:
            raise ValueError(f"which steps have a gradient is random here: {_REMEDY}")
        return torch.rand(n, generator=self.generator, device=self.generator.device).cpu()
