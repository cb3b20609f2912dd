"""Policy gradients: samples that a reward likes become more likely, whatever the reward is made of."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from xhat.data.batch import chosen_rows
from xhat.diffusion.denoiser import Denoiser
from xhat.losses.chains import FullChain
from xhat.losses.near import Near
from xhat.losses.penalties.base import takes_draw
from xhat.losses.rewards.advantages import NORMALISED
from xhat.losses.rewards.likelihoods import BoundLikelihood, Likelihood, Trajectory
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES
from xhat.sampling.differentiate import Last
from xhat.sampling.samplers import DDPM

Reward = Callable[..., Tensor]
"""images (B, ...) -> (B,), the more the better; with a second parameter it is handed the draw. It needs no gradient."""
Advantage = Callable[[Tensor], Tensor]
"""Rewards (groups, n) -> how much better each is than the rest of its group."""


class FromSamples(Loss):
    """A loss on samples that the model draws itself, and that a reward has judged.

    Args:
        reward: of clean images, decoded ones with `decode`.
        along: the chain that draws, by default 20 steps of DDPM.
        group: so many samples in a row are told the same, what the first of them is told, and compared with each other; None
            compares all of a batch, of each process by itself, whatever they are told.
        advantage: what is made of the rewards of a group.
        decode: as of `ImageLoss`.

    Raises:
        ValueError: another estimate than FullChain, a way to differentiate it, or groups of one; when called: a batch that
            groups do not divide, or a reward of another shape than (B,).
    """

    at_drawn_time = False
    calls_network = True

    def __init__(
        self,
        reward: Reward,
        along: FullChain | None,
        group: int | None,
        advantage: Advantage,
        decode: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if isinstance(reward, Loss) or not callable(reward):
            raise ValueError(f"{name} takes a reward, a function of images, got {reward!r}")
        along = along or FullChain(DDPM(), 20)
        if not isinstance(along, FullChain):
            raise ValueError(f"{name} judges samples of a chain from pure noise, FullChain(...), got {along!r}")
        if along.differentiate != Last(1):
            raise ValueError(f"{name} passes no gradient through the chain: leave {along.differentiate} out of it")
        if group is not None and group < 2:
            raise ValueError(f"{name} compares samples of a group: group is 2 or more, got {group}")
        self.reward, self.along, self.group, self.advantage = reward, along, group, advantage
        self._decode = (decode,)  # a module in a tuple is no submodule
        self._takes_draw = takes_draw(cast(Any, reward))

    @property
    def decode(self) -> Callable[[Tensor], Tensor] | None:
        """See the class."""
        return self._decode[0]

    def of_images(self, *, decoded: bool = False) -> Reward | None:
        """The reward as a function of images alone; None for one that is handed the draw, or of latents where pictures are."""
        return None if self._takes_draw or decoded != (self.decode is not None) else self.reward

    def grouped(self, draw: Draw) -> Draw:
        """The draw with each sample told what the first of its group is told."""
        rows = len(draw.t)
        each = self.group or rows
        if rows < 2 or rows % each:
            raise ValueError(f"a batch of {rows} is no number of groups of {self.group or 2}: choose another batch size")
        if self.group is None:
            return draw
        first = torch.arange(rows, device=draw.t.device) // each * each
        return replace(draw, cond=chosen_rows(draw.cond, first, rows), extra=chosen_rows(draw.extra, first, rows))

    @torch.no_grad()
    def judged(self, denoiser: Denoiser, images: Tensor, draw: Draw) -> Tensor:
        """The advantage of each image, (B,)."""
        seen = draw.physical(images) if self.decode is None else self.decode(images)
        reward = self.reward(seen, draw) if self._takes_draw else self.reward(seen)
        if not isinstance(reward, Tensor) or reward.shape != draw.t.shape:
            shape = tuple(reward.shape) if isinstance(reward, Tensor) else type(reward).__name__
            raise ValueError(f"the reward returned {shape} instead of one value per image, ({len(draw.t)},)")
        return self.advantage(reward.to(draw.t.dtype).reshape(-1, self.group or len(reward))).reshape(-1)


@LOSSES.register
class PolicyGradient(FromSamples):
    """-advantage · log p of the model's own samples, (B,): its gradient is the policy gradient, by values of the reward alone.

    Williams 1992 (REINFORCE); for diffusion Black et al. 2024 (DDPO) and Liu et al. 2025 (Flow-GRPO). Each step draws its own
    samples, so that the ratio of new to old probabilities is 1 and never clipped: nothing is stale. What stays near the model
    as it was is a term of its own, `TrajectoryKL` or `ToReference`. The value says nothing of how good samples are; the mean
    advantage is 0.

    Args:
        reward: images (B, ...) -> (B,), the more the better; it may be a count, a vote, an argmax. `minus(penalty)` is the
            reward that a penalty is.
        likelihood: StepLikelihood(K), of the steps that drew a sample, or BoundLikelihood(K), of the finished image.
        along: as of `FromSamples`; of samples that are drawn with guidance StepLikelihood is of the guided steps, and
            BoundLikelihood of the bare model.
        group: as of `FromSamples`.
        advantage: Normalised() or Centred().
        decode: as of `ImageLoss`.

    Raises:
        ValueError: as for `FromSamples`; a chain that the likelihood cannot say anything of.
    """

    def __init__(
        self,
        reward: Reward,
        likelihood: Likelihood | None = None,
        along: FullChain | None = None,
        group: int | None = None,
        advantage: Advantage = NORMALISED,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(reward, along, group, advantage, decode)
        self.likelihood = likelihood or BoundLikelihood()
        self.likelihood.require(self.along.sampler, self.along.steps)

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        draw = self.grouped(draw)
        chain = self.along.chain(denoiser, draw)
        with Near.alike(denoiser):
            with torch.no_grad():
                end, steps = chain.run(recorded=self.likelihood.recorded(chain))
            advantage = self.judged(denoiser, end, draw)
            return -advantage * self.likelihood(denoiser, Trajectory(chain, end, steps), draw)
