"""The loop: a sampler's steps from noise to an image, with gradients where they are asked for, each step recorded on demand."""

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from xhat.diffusion.denoiser import Conditioned
from xhat.sampling.samplers import Sampler, State
from xhat.tensors import over_images


@dataclass(frozen=True)
class Step:
    """All that one step of a chain depends on beside the model, so that it can be taken again.

    Attributes:
        number: i, from times[i] to times[i + 1].
        z: images at times[i], (B, C, H, W).
        noise: of the step, shaped like z, or several stacked; z itself for a sampler that uses none.
        state: of the sampler, from the step before.
    """

    number: int
    z: Tensor
    noise: Tensor
    state: State


@dataclass(frozen=True)
class Chain:
    """A sampler's steps through `times`, ready to be run.

    Attributes:
        model: the denoiser under its condition.
        sampler: the rule of a step.
        start: images at times[0], (B, C, H, W).
        times: (n + 1,) or (n + 1, B), on the device of `start`, as in `sample`.
        noise: the noise of step i, asked for once per run; of a sampler that takes m of them, numbers i m to i m + m - 1.
        uniform: n numbers in [0, 1), equal on all ranks, for a purpose that has a name.
        checkpoint: recompute each differentiated step in the backward pass.
        callback: called with (number of steps done, z) after each step of a run.
    """

    model: Conditioned
    sampler: Sampler
    start: Tensor
    times: Tensor
    noise: Callable[[int], Tensor]
    uniform: Callable[[int, str], Tensor]
    checkpoint: bool = True
    callback: Callable[[int, Tensor], None] | None = None

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.times) - 1

    def time(self, number: int) -> Tensor:
        """times[number] of each image, (B,)."""
        return self.times[number].expand(self.start.shape[0])

    def noise_of(self, number: int, z: Tensor) -> Tensor:
        """What a step from z (B, ...) gets as its noise."""
        if not self.sampler.stochastic:
            return z
        each = self.sampler.noises
        return self.noise(number) if each == 1 else torch.stack([self.noise(number * each + k) for k in range(each)])

    def run(
        self, differentiated: Container[int] = (), *, recorded: Container[int] = (), stop: int | None = None
    ) -> tuple[Tensor, list[Step]]:
        """Take the steps one after the other.

        Args:
            differentiated: numbers of the steps that gradients pass through; the others are taken without.
            recorded: numbers of the steps to be kept.
            stop: how many steps to take; by default all.

        Returns:
            The images at times[stop], (B, C, H, W), and the recorded steps in order.
        """
        z, state, kept = self.start, self.sampler.init(self.start), []
        for i in range(self.steps if stop is None else stop):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i in differentiated):
                step = Step(i, z, self.noise_of(i, z), state)
                z, state = self.take(step)
            if i in recorded:
                kept.append(step)
            if self.callback is not None:
                self.callback(i + 1, z)
        return z, kept

    def take(self, step: Step) -> tuple[Tensor, State]:
        """Images after a step, and the sampler's state; an image whose time does not change rests."""
        t, s = self.times[step.number], self.times[step.number + 1]
        if t.ndim == 0:
            return self._ahead(step, t, s)
        rests = s >= t
        goal = torch.where(rests, torch.zeros_like(s), s)  # a step that can be taken: no branch is NaN
        ahead, state = self._ahead(step, t, goal)
        return torch.where(over_images(rests, step.z).bool(), step.z, ahead), state

    def _ahead(self, step: Step, t: Tensor, s: Tensor) -> tuple[Tensor, State]:
        rows = step.z.shape[0]
        of_step = (self.model, step.z, t.expand(rows), s.expand(rows), step.noise, step.state)
        if not (self.checkpoint and torch.is_grad_enabled()):
            return self.sampler.step(*of_step)
        z, state = recompute(self.sampler.step, *of_step, use_reentrant=False)
        return z, state
