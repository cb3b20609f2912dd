"""Gradients that pass through the steps themselves: none, all, or the last of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.registry import GRADIENTS
from xhat.sampling import reversible
from xhat.sampling.chain import Chain, Step
from xhat.sampling.differentiate.base import Differentiation
from xhat.sampling.samplers import Leapfrog, Sampler
from xhat.tensors import over_images


@GRADIENTS.register
@dataclass(frozen=True)
class NoSteps(Differentiation):
    """Through none: the image alone."""

    def run(self, chain: Chain) -> Tensor:
        return chain.run()[0]


@GRADIENTS.register
@dataclass(frozen=True)
class AllSteps(Differentiation):
    """Through all: the true gradient of the sampler, a product of one Jacobian per step.

    `xhat gradients` shows how it grows along the chain.
    """

    def run(self, chain: Chain) -> Tensor:
        return chain.run(range(chain.steps))[0]


@GRADIENTS.register
@dataclass(frozen=True)
class Reversible(Differentiation):
    """Through all, as `AllSteps`, in memory that does not grow with the chain; for chains of `Leapfrog`, of any length.

    Each step's start is computed again in the backward pass from the images after it, in float64, so that none is kept. That
    takes as many network calls as recomputing kept ones does; the images that a checkpointed chain keeps are what it saves.
    A chain's callback is shown images without a gradient.
    """

    same_times = True

    def require_sampler(self, sampler: Sampler) -> None:
        if type(sampler).step is not Leapfrog.step:
            raise ValueError(
                f"Reversible() takes the steps of a chain back, which {sampler} cannot: use Leapfrog(), or AllSteps()"
            )

    def run(self, chain: Chain) -> Tensor:
        self.require_sampler(chain.sampler)
        return reversible.run(chain)


@GRADIENTS.register
@dataclass(frozen=True)
class Last(Differentiation):
    """Through the last `steps` steps: exact for those (DRaFT-K, Clark et al. 2024, algorithm 1)."""

    steps: int

    def require(self, steps: int) -> None:
        self._require(self.steps, steps)

    def run(self, chain: Chain) -> Tensor:
        return chain.run(range(chain.steps - self.steps, chain.steps))[0]


@GRADIENTS.register
@dataclass(frozen=True)
class RandomLast(Differentiation):
    """Through the last K steps, K uniform in 1..most, chosen anew at each training step (AlignProp, Prabhudesai et al. 2023).

    K is equal on all ranks, so that they take the same time.
    """

    most: int

    def require(self, steps: int) -> None:
        self._require(self.most, steps)

    def run(self, chain: Chain) -> Tensor:
        return Last(1 + int(chain.uniform(1, "random last")[0] * self.most)).run(chain)


@GRADIENTS.register
@dataclass(frozen=True)
class LowVariance(Differentiation):
    """Through the last step, as `Last(1)`, and again from `noises` further noisy versions of the image that came out.

    DRaFT-LV (Clark et al. 2024, algorithm 2): z = alpha x + sigma noise at the last step's time, x the chain's end without
    gradient. A penalty is averaged over all 1 + noises images, so that the gradient of the last step scatters less, for so many
    network calls instead of as many chains. Exact for the last step as far as the model is that of its own samples.
    """

    noises: int = 2

    def require(self, steps: int) -> None:
        if self.noises < 1:
            raise ValueError(f"LowVariance({self.noises}) adds no noise: choose LowVariance(1) or more, or Last(1)")

    def run(self, chain: Chain) -> Tensor:
        n, schedule = chain.steps, chain.model.schedule
        end, (last,) = chain.run({n - 1}, recorded={n - 1})
        alpha, sigma = (over_images(f(chain.time(n - 1)), end) for f in (schedule.alpha, schedule.sigma))
        ends = [end]
        for k in range(self.noises):
            again = alpha * end.detach() + sigma * chain.noise(n + k)
            ends.append(chain.take(Step(n - 1, again, last.noise, chain.sampler.init(again)))[0])
        return torch.cat(ends)
