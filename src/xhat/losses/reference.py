"""Staying near a frozen model: in its predictions, in whole trajectories, or on images of one's own."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.gaussians import kl, transition
from xhat.diffusion.targets import NOISE, Target
from xhat.diffusion.weightings import Weighting, constant, require_weighting
from xhat.losses.chains import FullChain
from xhat.losses.near import Near, is_random
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES
from xhat.sampling.chain import Chain, Step
from xhat.sampling.differentiate import AllSteps, Surrogate
from xhat.sampling.samplers import DDIM
from xhat.tensors import image_mean, image_sum, over_images


def _require_full(along: object) -> None:
    if along is not None and not isinstance(along, FullChain):
        raise ValueError(f"along is a chain from pure noise, FullChain(...), got {type(along).__name__}")


@LOSSES.register
class ToReference(Near):
    """weighting(logsnr) · mean over the pixels of ‖y_hat - y_ref‖²: how far predictions are from those of a frozen model, (B,).

    At the noisy images of the draw (off-policy), by the shared call and one more without gradient. With `along` at those of the
    model's own chain (on-policy), before one step of it, chosen at random: calls without gradient down to it, then two.

    Args:
        reference: another denoiser on the same schedule, frozen from now on and not saved; None is the model itself without its
            adapters, the same weights and no second copy.
        space: of the predictions.
        weighting: of the noise levels.
        along: None, or the chain whose steps are compared.

    Raises:
        ValueError: when called: there is no adapter to switch off, or the reference has other noise levels.
    """

    def __init__(
        self,
        reference: Denoiser | None = None,
        space: Target = NOISE,
        weighting: Weighting = constant,
        along: FullChain | None = None,
    ) -> None:
        super().__init__(reference)
        require_weighting(weighting)
        _require_full(along)
        self.space, self.weighting, self.along = space, weighting, along
        self.at_drawn_time = along is None

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        reference = self.model(denoiser, draw)
        shared = draw.seen is None and not is_random(denoiser.net)  # the shared call is the one to compare
        with self.alike(denoiser):
            if self.along is not None:
                z, t = self._visited(self.along.chain(denoiser, draw), draw)
                prediction = denoiser(z, t, draw.cond)
            else:
                z, t = draw.z, draw.t
                prediction = draw.prediction if shared else denoiser(z, t, draw.cond)
            with torch.no_grad(), self.as_reference(denoiser):
                frozen = reference(z, t, draw.cond).in_space(self.space)
        distance = image_mean((prediction.in_space(self.space) - frozen).square())
        schedule = denoiser.schedule
        return distance if self.weighting == constant else self.weighting(schedule.logsnr(t), schedule) * distance

    @staticmethod
    def _visited(chain: Chain, draw: Draw) -> tuple[Tensor, Tensor]:
        """The images before a step of the chain, equally likely each, and their times."""
        step = int(draw.uniform(1, "reference")[0] * chain.steps)
        with torch.no_grad():
            z, _ = chain.run(stop=step)
        return z, chain.time(step).to(draw.t)


@LOSSES.register
class TrajectoryKL(Near):
    """KL(p(z_0, ..., z_1) ‖ p_ref) of whole trajectories in nats per image, (B,): what a reward must be worth to be followed.

    Both start from the same noise, so that it is E sum_i KL(p(z_s | z_t) ‖ p_ref(z_s | z_t)) over the steps of the model's own
    chain (Fan et al. 2023, DPOK). The last one, into t = 0, has no noise: its means are compared at the variance beta-tilde of
    the step before, as DDPM clips it; left out, it would be free to take any reward. With a weight beta beside the negative
    reward the optimum is p_ref(x0) exp(reward / beta), as far as x0 does not depend on the starting noise, which DDPM and
    DDIM(1) make sure of (Domingo-Enrich et al. 2025, Adjoint matching).

    Args:
        reference: as of `ToReference`.
        along: the chain, of a sampler with noise. Its `differentiate` is AllSteps(), the true gradient, which knows that a
            change of a step changes the later ones; or Surrogate(K), that of K random steps with the images before them held
            fixed (DPOK's), at the cost of K steps with gradient.

    Raises:
        ValueError: another way to differentiate, or a sampler without noise; when called as for `ToReference`.
    """

    at_drawn_time = False

    def __init__(self, reference: Denoiser | None = None, along: FullChain | None = None) -> None:
        super().__init__(reference)
        _require_full(along)
        self.along = along or FullChain(DDIM(1.0), differentiate=AllSteps())
        if not isinstance(self.along.differentiate, AllSteps | Surrogate):
            raise ValueError(f"TrajectoryKL differentiates AllSteps() or Surrogate(K), got {self.along.differentiate}")
        if self.along.steps < 2:
            raise ValueError("a trajectory has 2 steps or more: the last one takes its variance from the one before")
        if not self.along.sampler.stochastic:
            raise ValueError(f"trajectories of {self.along.sampler} have no density: use DDPM(), or DDIM(eta) with eta > 0")

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        chain, other = self.along.chain(denoiser, draw), self.along.chain(self.model(denoiser, draw), draw)
        how = self.along.differentiate
        if isinstance(how, AllSteps):
            z, value = chain.start, torch.zeros_like(draw.t)
            for i in range(chain.steps):
                z, more = self._again(chain, other, denoiser, Step(i, z, chain.noise(i), ()))
                value = value + more
            return value
        assert isinstance(how, Surrogate)
        chosen = set(chain.uniform(chain.steps, "surrogate").argsort()[: how.steps].tolist())
        _, steps = chain.run(recorded=chosen)
        found = torch.stack([self._again(chain, other, denoiser, step)[1] for step in steps])
        return chain.steps / how.steps * found.sum(0)

    def _again(self, chain: Chain, other: Chain, denoiser: Denoiser, step: Step) -> tuple[Tensor, Tensor]:
        if not (chain.checkpoint and torch.is_grad_enabled()):
            return self._compared(chain, other, denoiser, step)
        found: tuple[Tensor, Tensor] = recompute(self._compared, chain, other, denoiser, step, use_reentrant=False)
        return found

    def _compared(self, chain: Chain, other: Chain, denoiser: Denoiser, step: Step) -> tuple[Tensor, Tensor]:
        """The images after a step, and the divergence of it, (B,)."""
        with self.alike(denoiser):  # in here, for the backward pass comes through once more
            return self._divergence(chain, other, denoiser, step)

    def _divergence(self, chain: Chain, other: Chain, denoiser: Denoiser, step: Step) -> tuple[Tensor, Tensor]:
        z, t, s = step.z, chain.time(step.number), chain.time(step.number + 1)
        ours = chain.sampler.transition(chain.model, z, t, s)
        with self.as_reference(denoiser):
            frozen = chain.sampler.transition(other.model, z, t, s)
        if step.number < chain.steps - 1:
            return ours.sample(step.noise), kl(ours, frozen).to(z.dtype)
        before = transition(chain.model.schedule, chain.time(step.number - 1), t).posterior_variance
        apart = image_sum((ours.mean - frozen.mean).square())
        return ours.mean, (apart / (2 * before)).to(z.dtype)


@LOSSES.register
class OnOthers(Loss):
    """A loss on other images than those that are trained on: prior preservation (Ruiz et al. 2023, DreamBooth, eq. 2), (B,).

    The images come with the batch, as extra["prior"], one for each sample, and what the network is told of them as
    extra["prior_cond"], a mapping of conditions; without it, they have the batch's own. They see the draw's times, and noise of
    their own, by a network call of their own.

    Args:
        loss: Denoising(...), or another one that the draw is enough for.
        name: of the images in `extra`.

    Raises:
        ValueError: when called: the batch has no such images, or images of another shape.
    """

    calls_network = True

    def __init__(self, loss: Loss, name: str = "prior") -> None:
        super().__init__()
        self.loss, self.name = loss, name

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        extra, x0 = draw.extra or {}, (draw.extra or {}).get(self.name)
        if not isinstance(x0, Tensor) or x0.shape != draw.x0.shape:
            found = f"{tuple(x0.shape)}" if isinstance(x0, Tensor) else "nothing" if x0 is None else type(x0).__name__
            raise ValueError(f'extra["{self.name}"] must be images {tuple(draw.x0.shape)}, as those of the batch: got {found}')
        own = extra.get(f"{self.name}_cond", draw.cond)
        if own is not None and not isinstance(own, Mapping):
            raise ValueError(f'extra["{self.name}_cond"] is a mapping of conditions by name, got a {type(own).__name__}')
        schedule, noise = denoiser.schedule, draw.normal(self.name)
        x0 = x0.to(draw.x0)
        z = over_images(schedule.alpha(draw.t), x0) * x0 + over_images(schedule.sigma(draw.t), x0) * noise
        there = replace(
            draw, seen=None, x0=x0, noise=noise, z=z, prediction=denoiser(z, draw.t, own, checkpoint=True), cond=own
        )
        value: Tensor = self.loss(denoiser, there)
        return value
