"""Adjoint matching: a penalty at the end of a noisy chain as a regression of each step's mean."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.gaussians import transition
from xhat.losses.chains import FullChain
from xhat.losses.image import ImageLoss
from xhat.losses.near import Near
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES
from xhat.sampling.chain import Chain, Step
from xhat.sampling.differentiate import Last
from xhat.tensors import image_sum, over_images


@LOSSES.register
class AdjointMatching(Near):
    """n/K sum over K steps i of ½ ‖(mu - mu_ref)/c + c a_{i+1}‖², in nats per image, (B,): its optimum is the tilted model.

    p(z_s | z_t) = N(mu, c²) is a step of the chain, and a the lean adjoint: a_n = strength · the penalty's gradient at the end,
    a_i = (d mu_ref/dz_i)^T a_{i+1}, by the reference alone, at the images that the model itself drew. Nothing of it is
    differentiated again (Domingo-Enrich et al. 2025, Adjoint matching, eq. 37 to 39, here in discrete time: exact for linear
    penalties and references, else up to the length of a step). At the optimum samples have the density
    p_ref exp(-strength · penalty), as far as x0 does not depend on the starting noise: that is what memoryless noise is for,
    which DDPM() and DDIM(1.0) have. No further term is needed to stay near the reference. The gradient is not the penalty's:
    only where it vanishes is known.

    The last step, into t = 0, has no noise; as in `TrajectoryKL`, it has the variance of the step before.

    Args:
        loss: the penalty, of a FullChain whose sampler has noise: `ImageLoss(penalty, FullChain(DDPM(), 20))`.
        reference: as of `ToReference`.
        strength: of the penalty; the larger, the further from the reference.
        steps: K, chosen at random; each takes two network calls, one with a gradient, beside 2n for the chain and the adjoint.

    Raises:
        ValueError: another estimate, a sampler without noise, a way to differentiate, or more steps than the chain takes.
    """

    at_drawn_time = False

    def __init__(self, loss: Loss, reference: Denoiser | None = None, strength: float = 1.0, steps: int = 4) -> None:
        super().__init__(reference)
        along = loss.image if isinstance(loss, ImageLoss) else None
        if not isinstance(loss, ImageLoss) or not isinstance(along, FullChain):
            raise ValueError("AdjointMatching needs an ImageLoss of a chain from pure noise, FullChain(DDPM(), ...)")
        if not along.sampler.stochastic:
            raise ValueError(f"{along.sampler} has no noise to match with: use DDPM(), or DDIM(1.0)")
        if along.differentiate != Last(1):
            raise ValueError(f"AdjointMatching differentiates in its own way: leave {along.differentiate} out of the chain")
        if along.steps < 2 or not 1 <= steps <= along.steps:
            raise ValueError(f"AdjointMatching of {steps} steps needs a chain of so many, and of 2 or more, got {along.steps}")
        self.loss, self.along, self.strength, self.steps = loss, along, strength, steps

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        chain, other = self.along.chain(denoiser, draw), self.along.chain(self.model(denoiser, draw), draw)
        n = chain.steps
        chosen = set(draw.uniform(n, "adjoint").argsort()[: self.steps].tolist())
        with self.alike(denoiser):
            with torch.no_grad():
                end, steps = chain.run(recorded=range(n))
            adjoint = self.strength * self._slope(denoiser, end, draw)
            total = torch.zeros_like(draw.t)
            for step in reversed(steps):
                if step.number in chosen:
                    total = total + self._again(chain, other, denoiser, step, adjoint)
                if step.number > min(chosen):
                    adjoint = self._before(other, denoiser, step, adjoint)
        return n / self.steps * total

    def _slope(self, denoiser: Denoiser, end: Tensor, draw: Draw) -> Tensor:
        """The penalty's gradient at the images."""
        with torch.enable_grad():
            image = end.detach().requires_grad_()
            value = self.loss.of_ends(denoiser, image, draw)
            (slope,) = torch.autograd.grad(value.sum(), image)
        return slope

    def _before(self, other: Chain, denoiser: Denoiser, step: Step, adjoint: Tensor) -> Tensor:
        """The adjoint before a step, by the reference's mean."""
        with torch.enable_grad(), self.as_reference(denoiser):
            z = step.z.detach().requires_grad_()
            mean = other.sampler.transition(other.model, z, other.time(step.number), other.time(step.number + 1)).mean
            (before,) = torch.autograd.grad(mean, z, adjoint)
        return before

    def _again(self, chain: Chain, other: Chain, denoiser: Denoiser, step: Step, adjoint: Tensor) -> Tensor:
        if not (chain.checkpoint and torch.is_grad_enabled()):
            return self._matched(chain, other, denoiser, step, adjoint)
        found: Tensor = recompute(self._matched, chain, other, denoiser, step, adjoint, use_reentrant=False)
        return found

    def _matched(self, chain: Chain, other: Chain, denoiser: Denoiser, step: Step, adjoint: Tensor) -> Tensor:
        """½ ‖(mu - mu_ref)/c + c a‖² of a step, (B,)."""
        i, z = step.number, step.z
        t, s = chain.time(i), chain.time(i + 1)
        with self.alike(denoiser):  # in here, for the backward pass comes through once more
            ours = chain.sampler.transition(chain.model, z, t, s)
            with torch.no_grad(), self.as_reference(denoiser):
                frozen = chain.sampler.transition(other.model, z, t, s)
        if i < chain.steps - 1:
            variance = frozen.log_variance.exp()
        else:
            variance = over_images(transition(chain.model.schedule, chain.time(i - 1), t).posterior_variance, z)
        c = variance.sqrt()
        return (image_sum(((ours.mean - frozen.mean) / c + c * adjoint).square()) / 2).to(z.dtype)
