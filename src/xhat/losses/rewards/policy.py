"""Policy gradients: samples that a reward likes become more likely, whatever the reward is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from xhat.budgets import require_at_most
from xhat.data.batch import chosen_rows
from xhat.diffusion.denoiser import Denoiser, Pending
from xhat.losses.chains import FullChain
from xhat.losses.near import Near
from xhat.losses.penalties.base import takes_draw
from xhat.losses.rewards.advantages import NORMALISED
from xhat.losses.rewards.likelihoods import BoundLikelihood, Likelihood, Trajectory
from xhat.objective.draw import Draw
from xhat.objective.samples import no_samples
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


@dataclass
class Samples:
    """What was drawn, and how likely it was then.

    Attributes:
        draw: that they were drawn by.
        drawn: the images, and steps to them.
        advantage: of each, (B,).
        before: the likelihood's parts at the time, (parts, B).
        steps: the training steps that they have served.
    """

    draw: Draw
    drawn: Trajectory
    advantage: Tensor
    before: Tensor | None = None
    steps: list[int] = field(default_factory=list)

    def serves(self, denoiser: Denoiser, step: int, most: int) -> bool:
        """Whether a step may use them, which is then one of so many; a step that is taken again may again."""
        if self.drawn.chain.model.denoiser is not denoiser:
            return False
        if step not in self.steps and len(self.steps) < most:
            self.steps.append(step)
        return step in self.steps


@LOSSES.register
class PolicyGradient(FromSamples):
    """-factor · sum over the parts of min(ratio · advantage, clip(ratio, 1 - clip, 1 + clip) · advantage), (B,).

    The ratio is of a part's probability to what it was when the sample was drawn. Where samples are new, it is 1, and the
    gradient is that of -advantage · log p: the policy gradient, by values of the reward alone (Williams 1992, REINFORCE; for
    diffusion Black et al. 2024, DDPO, and Liu et al. 2025, Flow-GRPO). With `reuse` a batch of samples serves several steps,
    which saves chains, and the ratio, clipped as in PPO (Schulman et al. 2017, eq. 7), keeps the model from leaving what drew
    them: a sample that has become more likely by the share `clip` and deserved it, or less likely and deserved that, has no
    gradient any more. With likelihoods of one part the gradient stays that of the mean reward, as long as nothing is clipped.

    What stays near the model as it was for longer is a term of its own, `TrajectoryKL` or `ToReference`. The value says nothing
    of how good samples are; the mean advantage is 0. Samples that are in use are not in a checkpoint: a run that is resumed
    draws anew.

    Args:
        reward: images (B, ...) -> (B,), the more the better; it may be a count, a vote, an argmax. `minus(penalty)` is the
            reward that a penalty is.
        likelihood: StepLikelihood(K), of the steps that drew a sample, or BoundLikelihood(K), of the finished image.
        along: as of `FromSamples`; of samples that are drawn with guidance StepLikelihood is of the guided steps, and
            BoundLikelihood of the bare model.
        group: as of `FromSamples`.
        advantage: Normalised() or Centred().
        decode: as of `ImageLoss`.
        reuse: how many training steps a batch of samples serves, with the conditions that it was drawn under.
        clip: see above; it is of nats of a whole image, where some codes divide by the number of pixels first.

    Raises:
        ValueError: as for `FromSamples`; a chain that the likelihood cannot say anything of; a reuse below 1, a clip that is
            not above 0.
    """

    def __init__(
        self,
        reward: Reward,
        likelihood: Likelihood | None = None,
        along: FullChain | None = None,
        group: int | None = None,
        advantage: Advantage = NORMALISED,
        decode: Callable[[Tensor], Tensor] | None = None,
        reuse: int = 1,
        clip: float = 0.2,
    ) -> None:
        super().__init__(reward, along, group, advantage, decode)
        require_at_most(10_000, reuse=reuse)
        if not (reuse >= 1 and clip > 0):
            raise ValueError(f"reuse is 1 or more and clip above 0, got {reuse} and {clip}")
        self.likelihood, self.reuse, self.clip = likelihood or BoundLikelihood(), reuse, clip
        self.likelihood.require(self.along.sampler, self.along.steps)
        self._kept: dict[object, Samples] = {}  # by the part of a batch that they are

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        draw = self.grouped(draw)
        again, part = self.training and torch.is_grad_enabled() and self.reuse > 1, (draw.first, draw.x0.shape)
        samples = self._kept.get(part) if again else None
        if samples is None or not samples.serves(denoiser, draw.step, self.reuse):
            samples = self._drawn(denoiser, draw)
        with Near.alike(denoiser):
            now = self.likelihood(denoiser, samples.drawn, samples.draw)
        if samples.before is None:
            samples.before = now.detach()
        if again:
            self._kept[part] = samples
        ratio = (now - samples.before).exp()
        gain = torch.minimum(samples.advantage * ratio, samples.advantage * ratio.clamp(1 - self.clip, 1 + self.clip))
        return (-self.likelihood.factor(samples.drawn.chain) * gain.sum(0)).to(draw.x0.dtype)

    @torch.no_grad()
    def _drawn(self, denoiser: Denoiser, draw: Draw) -> "Samples":
        chain = self.along.chain(denoiser, draw)
        with Near.alike(denoiser):
            end, steps = chain.run(recorded=self.likelihood.recorded(chain))
            advantage = self.judged(denoiser, end, draw)
        drawn = Trajectory(chain, end, {step.number: step for step in steps})
        # without the shared prediction, whose graph would be kept
        draw = replace(draw, prediction=Pending(denoiser, draw.z, draw.t, no_samples))
        return Samples(draw, drawn, advantage, steps=[draw.step])
