"""How gradients pass through a chain of sampling steps: through none, some or all of them, or through a cheaper surrogate."""

from dataclasses import dataclass

from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.registry import GRADIENTS
from xhat.sampling import reversible
from xhat.sampling.chain import Chain
from xhat.sampling.samplers import Leapfrog, Sampler
from xhat.tensors import over_images


class Differentiation:
    """A way to differentiate the end of a chain with respect to the network."""

    def require(self, steps: int) -> None:
        """Refuse a chain of so many steps, if it is too short for it.

        Raises:
            ValueError: it is.
        """

    def require_sampler(self, sampler: Sampler) -> None:
        """Refuse a sampler that cannot be differentiated so.

        Raises:
            ValueError: it cannot.
        """

    def run(self, chain: Chain) -> Tensor:
        """The image at the end of the chain, (B, C, H, W), with the gradient that it has this way."""
        raise NotImplementedError(f"{type(self).__name__} must define run")

    def _require(self, count: int, steps: int) -> None:
        if not (isinstance(count, int) and 1 <= count <= steps):
            name = type(self).__name__
            raise ValueError(f"{name}({count}), but the chain takes {steps} steps: choose {name}(1) to {name}({steps})")


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

    def require_sampler(self, sampler: Sampler) -> None:
        if type(sampler).step is not Leapfrog.step:
            raise ValueError(
                f"Reversible() takes the steps of a chain back, which {sampler} cannot: use Leapfrog(), or AllSteps()"
            )

    def run(self, chain: Chain) -> Tensor:
        self.require_sampler(chain.sampler)
        if chain.times.ndim != 1:
            raise ValueError(
                "Reversible() needs times (n + 1,), the same for all images: use AllSteps() for times of each image"
            )
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


def require(differentiate: object, steps: int, sampler: Sampler) -> None:
    """Refuse what is no way to differentiate, one that a chain of so many steps is too short for, and one its sampler lacks.

    Raises:
        ValueError: it is; the message says what to write instead.
    """
    if not isinstance(differentiate, Differentiation):
        count = differentiate if isinstance(differentiate, int) and differentiate > 0 else 1
        got = f"the class {differentiate.__name__}" if isinstance(differentiate, type) else repr(differentiate)
        raise ValueError(f"differentiate says which steps have a gradient, got {got}: write Last({count}) or AllSteps()")
    differentiate.require(steps)
    differentiate.require_sampler(sampler)


def _r(schedule: Schedule, t: Tensor, z: Tensor) -> Tensor:
    return over_images(schedule.alpha(t) + schedule.sigma(t), z)
