"""The shared draw: what all terms of one step see."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xhat import rng
from xhat.data.batch import Extra, chosen_rows
from xhat.diffusion.denoiser import Condition, Prediction

FAR = 10.0
"""Images this many times beyond the expected range are on another scale; a few times may well be."""


@dataclass(frozen=True)
class Draw:
    """What all terms of one step share.

    Attributes:
        x0: clean samples (B, ...): images (B, C, H, W), or fields of any rank.
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
        extra: what the caller brought beside: masks, pixels, prompts, with one row a sample. The network never sees it.
        seen: what the network was shown in place of z, where that was perturbed.
        units: gives the user's own values of normalised ones, see `Denoiser`; x0, z and the prediction are normalised.
        among: of a part of a draw, see `rows`: how many samples the whole has, and which of them these are.
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
    extra: Extra | None = None
    among: tuple[int, Tensor] | None = None
    seen: Tensor | None = None
    units: Callable[[Tensor], Tensor] | None = None

    def physical(self, x: Tensor) -> Tensor:
        """Values like x0 in the user's own units."""
        return x if self.units is None else self.units(x)

    def noise_error(self) -> Tensor:
        """‖noise - noise_hat‖², a mean over pixels, (B,)."""
        return (self.prediction.noise - self.noise).flatten(1).square().mean(1)

    def rows(self, index: Tensor) -> "Draw":
        """The draw of samples number `index` (n,) alone; each keeps its own randomness."""
        own = {name: getattr(self, name)[index] for name in ("x0", "t", "noise", "z", "importance")}
        whole, before = self.among or (len(self.t), None)
        return replace(
            self,
            **own,
            prediction=self.prediction.rows(index),
            seen=None if self.seen is None else self.seen[index],
            cond=chosen_rows(self.cond, index, len(self.t)),
            extra=chosen_rows(self.extra, index, len(self.t)),
            among=(whole, index if before is None else before[index]),
        )

    def normal(self, purpose: str, number: int = 0) -> Tensor:
        """Fresh standard normal noise shaped like x0; image k's is a function of (seed, purpose, number, step, k) alone."""
        count, index = self.among or (len(self.t), None)
        shape, device = (count, *self.x0.shape[1:]), self.x0.device
        if self.generator is not None:
            drawn = torch.randn(shape, generator=self.generator, device=self.generator.device).to(self.x0)
        else:
            drawn = rng.normal(shape, self.seed, purpose, number, self.step, first=self.first, device=device).to(self.x0.dtype)
        return drawn if index is None else drawn[index]

    def uniform(self, n: int, purpose: str) -> Tensor:
        """n numbers in [0, 1), equal on all ranks: a function of (seed, purpose, step) alone."""
        if self.generator is not None:
            return torch.rand(n, generator=self.generator, device=self.generator.device).cpu()
        return torch.rand(n, generator=rng.generator(self.seed, purpose, self.step))
