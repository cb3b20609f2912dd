"""What a term is: a loss on the shared draw, its factor, and when it counts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xhat import rng as counted
from xhat.diffusion.denoiser import Condition, Denoiser, Prediction
from xhat.objective.gates import Gate, always
from xhat.objective.multipliers import Multiplier

FAR = 10.0
"""Images this many times beyond the expected range are on another scale; a few times may well be."""


@dataclass(frozen=True)
class Draw:
    """What all terms of one step share.

    Attributes:
        x0: clean images (B, C, H, W).
        t: times (B,).
        noise: unit-variance noise shaped like x0; every target is made of it.
        z: alpha x0 + sigma noise.
        prediction: the one network call.
        importance: uniform density / sampler's density at t, (B,).
        cond: what the network was conditioned on.
        step: the training step.
        seed: of `normal` and `uniform`, a term's own randomness.
        first: number of the first image in the step.
        generator: where `normal` and `uniform` draw from, if the objective was called with one, instead of from the seed.
    """

    x0: Tensor
    t: Tensor
    noise: Tensor
    z: Tensor
    prediction: Prediction
    importance: Tensor
    cond: Condition | None
    step: int
    seed: int
    first: int = 0
    generator: torch.Generator | None = None

    def normal(self, purpose: str, number: int = 0) -> Tensor:
        """Fresh standard normal noise shaped like x0; image k's is a function of (seed, purpose, number, step, k) alone."""
        shape, device = tuple(self.x0.shape), self.x0.device
        if self.generator is not None:
            return torch.randn(shape, generator=self.generator, device=self.generator.device).to(self.x0)
        return counted.normal(shape, self.seed, purpose, number, self.step, first=self.first, device=device).to(self.x0.dtype)

    def uniform(self, n: int, purpose: str) -> Tensor:
        """n numbers in [0, 1), equal on all ranks: a function of (seed, purpose, step) alone."""
        if self.generator is not None:
            return torch.rand(n, generator=self.generator, device=self.generator.device).cpu()
        return torch.rand(n, generator=counted.generator(self.seed, purpose, self.step))


class Loss(nn.Module):
    """A term's value per image: forward(denoiser, draw) -> (B,), unweighted and unreduced.

    Attributes:
        at_drawn_time: whether the value depends on the drawn t, and so is importance-weighted. A loss on a whole chain
            from pure noise does not.
        calls_network: whether it calls the network beyond the shared draw. At steps where it counts the shared call is then
            recomputed in the backward pass, so that never more than one call's activations are in memory.
        trains_variance: whether it has a gradient in the reverse variance.
    """

    at_drawn_time: bool = True
    calls_network: bool = False
    trains_variance: bool = False

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(denoiser, draw) -> (B,)")

    def parts(self) -> "tuple[Loss, ...]":
        """The losses that it is a sum of; itself if it is none."""
        return (self,)

    def scale(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        """The weight by noise level that is in the value, (B,); what a penalty's mean is to be divided by."""
        return torch.ones_like(draw.t)

    def offset(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        """The summand of the value that depends on the drawn t alone, (B,): a time sampler that follows the loss ignores it."""
        return torch.zeros_like(draw.t)

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        """The weight (N,) that this loss puts on ‖noise - noise_hat‖² at each logsnr; None if it is no such loss."""
        return None


@dataclass(frozen=True)
class Term:
    """One summand of an objective: a loss, its factor (a number, or what finds it), and when it counts."""

    loss: Loss
    weight: float | Multiplier = 1.0
    when: Gate = always
