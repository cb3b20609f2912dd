"""What steers a chain: the sampler it is laid around, and a model whose clean image is moved."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Conditioned, Prediction
from xhat.diffusion.gaussians import Gaussian
from xhat.sampling.samplers import Sampler, State
from xhat.tensors import over_images


class Steering:
    """A way to pull samples somewhere while they are drawn."""

    @abstractmethod
    def around(self, sampler: Sampler) -> Sampler:
        """The sampler, whose steps are steered so."""

    def rows(self, index: Tensor) -> Self:
        """The same for some of the samples, by their numbers: each is steered to what is its own."""
        return self


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """Rows number `index` mod n of n values, (n, ...)."""
    return values[index.to(values.device) % len(values)]


def penalty_of(penalty: Callable[[Tensor], Tensor], index: Tensor) -> Callable[[Tensor], Tensor]:
    """The penalty of some of the samples: its own `rows`, if it has them, as a measurement does."""
    own = getattr(penalty, "rows", None)
    return penalty if own is None else cast(Callable[[Tensor], Tensor], own(index))


class Moves(Steering):
    """A steering that moves x0_hat, and so what any sampler sees: towards E[x0 | z, y] of a measurement y, say."""

    @abstractmethod
    def moved(self, model: Conditioned, z: Tensor, t: Tensor) -> tuple[Prediction, Tensor]:
        """The model's prediction at z (B, ...), and the score g to be added to that of z, (B, ...).

        x0_hat moves by sigma²/alpha · g, and noise_hat by -sigma g (Tweedie's formula).
        """

    def around(self, sampler: Sampler) -> Sampler:
        return Moved(sampler, self)


@dataclass(frozen=True)
class Steered(Sampler):
    """A sampler with something around it. The network gets no gradient through it."""

    sampler: Sampler
    steering: Steering

    @property
    def stochastic(self) -> bool:
        return self.sampler.stochastic

    @property
    def noises(self) -> int:
        return self.sampler.noises

    @property
    def passes_gradients(self) -> bool:
        return False

    def rows(self, index: Tensor) -> Self:
        return replace(self, sampler=self.sampler.rows(index), steering=self.steering.rows(index))

    def init(self, z: Tensor) -> State:
        return self.sampler.init(z)


@dataclass(frozen=True)
class Moved(Steered):
    """A sampler whose model is moved."""

    steering: Moves

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        return self.sampler.step(_Model(model.denoiser, model.cond, model, self.steering), z, t, s, noise, state)

    def transition(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        return self.sampler.transition(_Model(model.denoiser, model.cond, model, self.steering), z, t, s)


@dataclass(frozen=True)
class _Model(Conditioned):
    """A model whose x0_hat is moved."""

    own: Conditioned | None = None
    steering: Moves | None = None

    def __call__(self, z: Tensor, t: Tensor, *, checkpoint: bool = False) -> Prediction:
        assert self.own is not None
        assert self.steering is not None
        p, score = self.steering.moved(self.own, z, t)
        schedule, target = self.schedule, self.denoiser.target
        wide = t.to(torch.float64)
        a, b = target.coefficients(schedule, wide)
        alpha, sigma = schedule.alpha(wide), schedule.sigma(wide)
        # where nothing is left of the image, x0_hat does not depend on z, and no score of it says where to
        gain = torch.where(alpha > 0, a * sigma**2 / torch.where(alpha > 0, alpha, torch.ones_like(alpha)) - b * sigma, 0.0 * a)
        raw = p.raw.detach() + over_images(gain, z) * score
        return Prediction(self.denoiser, z.detach(), t, raw, None if p.variance_logits is None else p.variance_logits.detach())
