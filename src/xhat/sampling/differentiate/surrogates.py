"""Gradients that pass through single calls of the network: the image is a true sample, and no Jacobian is chained."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Conditioned, Prediction
from xhat.diffusion.schedules import Schedule
from xhat.registry import GRADIENTS
from xhat.sampling.chain import Chain, Step
from xhat.sampling.differentiate.base import Differentiation
from xhat.tensors import over_images


@GRADIENTS.register
@dataclass(frozen=True)
class Surrogate(Differentiation):
    """The value of a true sample with the gradient of `steps` random steps, taken again, each from its recorded z.

    x = x* + (n/K) sum over the K steps of r_0/r_s (step(z_t) - stopgrad step(z_t)), r = alpha + sigma: x* is the end of a chain
    run without gradient, and a change of z_s is carried to the end with all later network outputs held fixed, so that it
    keeps its size in z/r. No Jacobian of the network is chained: the gradient can neither explode nor see how a step changes
    later ones. FlowBP's sparse form (Wang et al. 2026, Exploring the design space of reward backpropagation for flow
    matching), for any schedule; the factor n/K makes random steps unbiased for all of them.
    """

    steps: int = 1

    def require(self, steps: int) -> None:
        self._require(self.steps, steps)

    def run(self, chain: Chain) -> Tensor:
        n, schedule = chain.steps, chain.model.schedule
        chosen = chain.uniform(n, "surrogate").argsort()[: self.steps].tolist()
        end, recorded = chain.run(recorded=set(chosen))
        for step in recorded:
            z_s, _ = chain.take(step)
            carried = _r(schedule, chain.time(n), end) / _r(schedule, chain.time(step.number + 1), end)
            end = end + (n / self.steps) * carried * (z_s - z_s.detach())
        return end


@GRADIENTS.named("refl")
@dataclass(frozen=True)
class ReFL(Differentiation):
    """x0_hat of one network call with gradient, at the start of one of the last `among` steps, chosen at random.

    ImageReward's feedback learning (Xu et al. 2023, algorithm 1): the chain down to that z_t has no gradient.
    """

    among: int

    def require(self, steps: int) -> None:
        self._require(self.among, steps)

    def run(self, chain: Chain) -> Tensor:
        stop = chain.steps - 1 - int(chain.uniform(1, "refl")[0] * self.among)
        z, _ = chain.run(stop=stop)
        return chain.model(z, chain.time(stop)).x0


@GRADIENTS.register
@dataclass(frozen=True)
class DRTune(Differentiation):
    """Through `steps` equally spaced network calls, none of which passes a gradient to its own input; what is left is linear.

    DRTune (Wu et al. 2024, Deep reward supervisions for tuning text-to-image diffusion models, algorithm 1): a change of a
    network output reaches the end by the sampler's arithmetic alone, with all later network outputs, in the network's own
    target, held fixed: no Jacobian is chained. The gradient is n/K times that of the K chosen, whose first is random: unbiased
    for all n. With `among` the chain ends early, at x0_hat of one of its last so many calls, at random.
    """

    steps: int
    among: int = 1

    def require(self, steps: int) -> None:
        if not 1 <= self.among <= steps:
            raise ValueError(f"DRTune(among={self.among}), but the chain takes {steps} steps: choose 1 to {steps}")
        self._require(self.steps, steps - self.among + 1)

    def run(self, chain: Chain) -> Tensor:
        n = chain.steps - int(chain.uniform(1, "drtune stop")[0] * self.among)
        shift = float(chain.uniform(1, "drtune")[0])
        chosen = {int((k + shift) * n / self.steps) for k in range(self.steps)}
        learning = replace(chain, model=_Stopped(chain.model.denoiser, chain.model.cond, n / self.steps))
        still = replace(chain, model=_Stopped(chain.model.denoiser, chain.model.cond, 0.0), checkpoint=False)
        z, state = chain.start, chain.sampler.init(chain.start)
        for i in range(n):
            own = learning if i in chosen else still
            if i == n - 1 < chain.steps - 1:
                return own.model(z, chain.time(i), checkpoint=own.checkpoint).x0
            z, state = own.take(Step(i, z, chain.noise_of(i, z), state))
            if chain.callback is not None:
                chain.callback(i + 1, z)
        return z


@dataclass(frozen=True)
class _Stopped(Conditioned):
    """A denoiser whose network passes no gradient to its input, and `factor` times its own to its parameters; 0 is none."""

    factor: float = 1.0

    def __call__(self, z: Tensor, t: Tensor, *, checkpoint: bool = False) -> Prediction:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.factor > 0):
            p = self.denoiser(z, t, self.cond, checkpoint=checkpoint, seen=z.detach())
        raw = p.raw.detach() + self.factor * (p.raw - p.raw.detach()) if p.raw.requires_grad else p.raw
        return Prediction(self.denoiser, z, t, raw, p.variance_logits)


def _r(schedule: Schedule, t: Tensor, z: Tensor) -> Tensor:
    return over_images(schedule.alpha(t) + schedule.sigma(t), z)
