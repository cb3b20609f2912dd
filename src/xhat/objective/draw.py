"""The shared draw: what all terms of one step see."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import rng
from xhat.diffusion.denoiser import Condition, Prediction

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
        return rng.normal(shape, self.seed, purpose, number, self.step, first=self.first, device=device).to(self.x0.dtype)

    def uniform(self, n: int, purpose: str) -> Tensor:
        """n numbers in [0, 1), equal on all ranks: a function of (seed, purpose, step) alone."""
        if self.generator is not None:
            return torch.rand(n, generator=self.generator, device=self.generator.device).cpu()
        return torch.rand(n, generator=rng.generator(self.seed, purpose, self.step))
