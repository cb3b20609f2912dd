"""How gradients flow back through a chain of sampling steps: through the last ones, or through a cheaper surrogate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Denoiser, Prediction
from xhat.diffusion.schedules import Schedule
from xhat.objective.draw import Draw
from xhat.registry import GRADIENTS
from xhat.sampling.samplers import Sampler, State, sample, sampler_step
from xhat.tensors import over_images


class Backward:
    """A way to differentiate the end of a chain with respect to the network."""

    def require(self, steps: int) -> None:
        """Refuse a chain that is too short for it."""

    def run(self, denoiser: Denoiser, sampler: Sampler, z: Tensor, times: Tensor, draw: Draw, checkpoint: bool) -> Tensor:
        """The image at the end, (B, C, H, W).

        Args:
            denoiser: the model.
            sampler: the rule of a step.
            z: start, at times[0].
            times: (n + 1,) or (n + 1, B), as in `sample`.
            draw: whose randomness is used.
            checkpoint: recompute each differentiated step in the backward pass.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run")


@GRADIENTS.register
@dataclass(frozen=True)
class Last(Backward):
    """Through the last `steps` steps, None through all: exact for those steps (DRaFT-K, Clark et al. 2024, algorithm 1).

    All of them is the true gradient of the sampler, a product of one Jacobian per step; `xhat gradients` shows how it grows.
    """

    steps: int | None = 1

    def require(self, steps: int) -> None:
        if self.steps is not None and not 1 <= self.steps <= steps:
            raise ValueError(
                f"grad_steps = {self.steps}, but the chain takes {steps} steps: choose 1..{steps}, or None for all"
            )

    def run(self, denoiser: Denoiser, sampler: Sampler, z: Tensor, times: Tensor, draw: Draw, checkpoint: bool) -> Tensor:
        return sample(
            denoiser,
            sampler,
            z,
            times,
            grad_steps=self.steps,
            checkpoint=checkpoint,
            cond=draw.cond,
            noise=lambda i: draw.normal("sampler", i),
        )


@GRADIENTS.register
@dataclass(frozen=True)
class RandomLast(Backward):
    """Through the last K steps, K uniform in 1..most, drawn anew at each training step (AlignProp, Prabhudesai et al. 2023).

    K is equal on all ranks, so that they take the same time.
    """

    most: int

    def require(self, steps: int) -> None:
        Last(self.most).require(steps)

    def run(self, denoiser: Denoiser, sampler: Sampler, z: Tensor, times: Tensor, draw: Draw, checkpoint: bool) -> Tensor:
        chosen = Last(1 + int(draw.uniform(1, "random last")[0] * self.most))
        return chosen.run(denoiser, sampler, z, times, draw, checkpoint)


@GRADIENTS.register
@dataclass(frozen=True)
class Surrogate(Backward):
    """The value of a true sample with the gradient of `steps` random steps, run again, each from its stored z.

    x = x* + (n/K) sum over the K steps of r_0/r_s (step(z_t) - stopgrad step(z_t)), r = alpha + sigma: x* is the end of a chain
    run without gradient, and a change of z_s is carried to the end with all later network outputs held fixed, so that it
    keeps its size in z/r. No Jacobian of the network is chained: the gradient can neither explode nor see how a step changes
    later ones. FlowBP's sparse form (Wang et al. 2026, Exploring the design space of reward backpropagation for flow
    matching), for any schedule; the factor n/K makes random steps unbiased for all of them.
    """

    steps: int = 1

    def require(self, steps: int) -> None:
        Last(self.steps).require(steps)

    def run(self, denoiser: Denoiser, sampler: Sampler, z: Tensor, times: Tensor, draw: Draw, checkpoint: bool) -> Tensor:
        model, n, times = denoiser.given(draw.cond), len(times) - 1, times.to(z.device)
        chosen = draw.uniform(n, "surrogate").argsort()[: self.steps].tolist()
        end, stored = _stored(denoiser, sampler, z, times, draw, set(chosen))
        for i, (z_t, state) in stored.items():
            noise = draw.normal("sampler", i) if sampler.stochastic else z_t
            z_s, _ = sampler_step(model, sampler, z_t, times[i], times[i + 1], noise, state, checkpoint=checkpoint)
            carried = _r(denoiser.schedule, times[-1], end) / _r(denoiser.schedule, times[i + 1], end)
            end = end + (n / self.steps) * carried * (z_s - z_s.detach())
        return end


@GRADIENTS.named("refl")
@dataclass(frozen=True)
class ReFL(Backward):
    """x0_hat of one network call with gradient, at the start of one of the last `among` steps, chosen at random.

    ImageReward's feedback learning (Xu et al. 2023, algorithm 1): the chain down to that z_t has no gradient.
    """

    among: int

    def require(self, steps: int) -> None:
        Last(self.among).require(steps)

    def run(self, denoiser: Denoiser, sampler: Sampler, z: Tensor, times: Tensor, draw: Draw, checkpoint: bool) -> Tensor:
        n = len(times) - 1
        stop = n - 1 - int(draw.uniform(1, "refl")[0] * self.among)
        with torch.no_grad():
            z = _stored(denoiser, sampler, z, times[: stop + 1], draw, set())[0]
        last: Prediction = denoiser(z, times[stop].to(z.device).expand(z.shape[0]), draw.cond)
        return last.x0


@torch.no_grad()
def _stored(
    denoiser: Denoiser, sampler: Sampler, z: Tensor, times: Tensor, draw: Draw, kept: set[int]
) -> tuple[Tensor, dict[int, tuple[Tensor, State]]]:
    """The end of a chain without gradient, and z and the sampler's state before each of the steps in `kept`."""
    model, state, stored = denoiser.given(draw.cond), sampler.init(z), {}
    for i in range(len(times) - 1):
        if i in kept:
            stored[i] = (z, state)
        noise = draw.normal("sampler", i) if sampler.stochastic else z
        z, state = sampler_step(model, sampler, z, times[i].to(z.device), times[i + 1].to(z.device), noise, state)
    return z, stored


def _r(schedule: Schedule, t: Tensor, z: Tensor) -> Tensor:
    wide = t.to(z.device).expand(z.shape[0])
    return over_images(schedule.alpha(wide) + schedule.sigma(wide), z)
