"""RePaint: pixels that are known."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from xhat.budgets import require_at_most
from xhat.diffusion.denoiser import Conditioned
from xhat.diffusion.gaussians import transition
from xhat.registry import STEERINGS
from xhat.sampling.samplers import Sampler, State
from xhat.sampling.steering.base import Steered, Steering, rows_of
from xhat.tensors import over_images


@STEERINGS.named("repaint")
@dataclass(frozen=True)
class RePaint(Steering):
    """After each step the known pixels are the given image's, noised to its time; then back by a step's noise, and again.

    Lugmayr et al. 2022 (RePaint, algorithm 1). The repeats let the free pixels see what the known ones are; with one, they see
    it from the next step on. No gradient, and no more calls than repeats times the sampler's.

    Args:
        image: (B, ...), or (1, ...) for all samples.
        mask: of the same shape, or broadcastable: 1 where the image is known, 0 where it is to be drawn; or an operator that
            leaves known pixels alone and makes others 0, as `hide` does.
        repeats: of each step.

    Raises:
        ValueError: no repeats; when laid around a sampler that takes several noises a step.
    """

    image: Tensor
    mask: Tensor | Callable[[Tensor], Tensor]
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"RePaint takes each step once or more, got repeats={self.repeats}")
        require_at_most(1000, repeats=self.repeats)

    def rows(self, index: Tensor) -> Self:
        mask = rows_of(self.mask, index) if isinstance(self.mask, Tensor) and len(self.mask) > 1 else self.mask
        return replace(self, image=rows_of(self.image, index), mask=mask)

    def known(self, z: Tensor) -> Tensor:
        """Which of the values of z are, (B, ...), bool."""
        mask = self.mask if isinstance(self.mask, Tensor) else self.mask(torch.ones_like(z))
        return mask.to(z.device).bool()

    def around(self, sampler: Sampler) -> Sampler:
        if sampler.noises > 1:
            raise ValueError(f"RePaint goes around a sampler of one noise a step, not {sampler}")
        return _Known(sampler, self)


@dataclass(frozen=True)
class _Known(Steered):
    steering: RePaint

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def noises(self) -> int:
        """Of each repeat: the sampler's, the known pixels', and the way back's."""
        return 3 * self.steering.repeats

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        schedule, known, image = model.schedule, self.steering.known(z), self.steering.image.to(z)
        alpha, sigma = (over_images(f(s.double()), z) for f in (schedule.alpha, schedule.sigma))
        done, between = over_images(s <= 0, z).bool(), transition(schedule, t, s)
        for k in range(self.steering.repeats):
            of_sampler, of_known, of_return = noise[3 * k : 3 * k + 3]
            ahead, after = self.sampler.step(model, z, t, s, of_sampler, state)
            ahead = torch.where(known, torch.where(done, image, alpha * image + sigma * of_known), ahead)
            z = over_images(between.alpha_ratio, z) * ahead + over_images(between.forward_variance.sqrt(), z) * of_return
        return ahead, after
