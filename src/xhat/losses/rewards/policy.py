"""Policy gradients: samples that a reward likes become more likely, whatever the reward is made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from xhat.budgets import require_at_most
from xhat.data.batch import chosen_rows
from xhat.diffusion.denoiser import Denoiser, Pending, Prediction
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
        self.reward, self.along, self.group, self.advantage, self.together = reward, along, group, advantage, group or 0
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
    """-factor · advantage · sum over the parts of 1 + D (ratio^(1/D) - 1), D numbers in a sample, (B,).

    The ratio is of a part's probability to what it was when the sample was drawn. Where samples are new, it is 1, and the
    gradient is that of -advantage · log p: the policy gradient, by values of the reward alone (Williams 1992, REINFORCE; for
    diffusion Black et al. 2024, DDPO, and Liu et al. 2025, Flow-GRPO). With `reuse` a batch of samples serves several steps,
    which saves chains. The gradient is then right to first order in what the weights have changed by since; so the ratio is
    clipped as in PPO (Schulman et al. 2017, eq. 7): a part that has become more likely by `clip` nats and deserved it, or less
    likely and deserved that, has no gradient any more. The root keeps the ratios of large images finite, as in the code of DDPO
    and Flow-GRPO, which average over the numbers of a sample; their clip is this one over D.

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
        clip: see above; where one step of the optimizer changes a sample's log p by more, further steps gain nothing.

    Raises:
        ValueError: as for `FromSamples`; a chain that the likelihood cannot say anything of; a reuse below 1, a clip that is
            not above 0; when called: reuse of what a generator draws.
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
        clip: float = 1.0,
    ) -> None:
        super().__init__(reward, along, group, advantage, decode)
        require_at_most(10_000, reuse=reuse)
        if not (reuse >= 1 and clip > 0):
            raise ValueError(f"reuse is 1 or more and clip above 0, got {reuse} and {clip}")
        self.likelihood, self.reuse, self.clip = likelihood or BoundLikelihood(), reuse, clip
        self.likelihood.require(self.along.sampler, self.along.steps)
        self._round = Round()

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        draw = self.grouped(draw)
        own = self._round.of(denoiser, draw.step, self.reuse) if self._reuses(draw) else None  # read alone without a gradient
        part = (draw.first, draw.x0.shape, draw.x0.device)
        samples = own.get(part) if own is not None else None
        if samples is None:
            samples = self._drawn(denoiser, draw, again=own is not None)
        with Near.alike(denoiser):
            now = self.likelihood(denoiser, samples.drawn, samples.draw)
        if now.shape[1:] != draw.t.shape:
            raise ValueError(f"a likelihood returns (parts, {len(draw.t)}), got {tuple(now.shape)}")
        if samples.before is None:
            samples = replace(samples, before=now.detach())
        if own is not None and torch.is_grad_enabled():
            own[part] = samples
        assert samples.before is not None
        size, good = draw.x0[0].numel(), samples.advantage > 0
        most = torch.where(good, self.clip, math.inf)
        least = torch.where(good, -math.inf, -self.clip)  # on the logarithm: a clipped exponential has a gradient of 0 · inf
        moved = 1 + size * torch.expm1((now - samples.before).clamp(least, most) / size)
        gain = self.likelihood.factor(samples.drawn.chain) * samples.advantage * moved.sum(0)
        return -gain.to(draw.x0.dtype)

    def _reuses(self, draw: Draw) -> bool:
        """Whether samples may be old ones; of a part of a draw, which somebody looks at by itself, they are not.

        Raises:
            ValueError: a generator would draw other steps and noises for them each time.
        """
        if self.reuse == 1 or not self.training or draw.among is not None:
            return False
        if draw.generator is not None:
            raise ValueError("samples that serve several steps are a function of seed and step: leave out generator, or reuse")
        return True

    @torch.no_grad()
    def _drawn(self, denoiser: Denoiser, draw: Draw, *, again: bool) -> "Samples":
        own = _by_itself(denoiser, draw) if again else draw
        chain = self.along.chain(denoiser, own)
        asked = self.likelihood.recorded(chain)
        with Near.alike(denoiser):
            end, steps = chain.run(recorded={number + more for number in asked for more in (0, 1)})
            advantage = self.judged(denoiser, end, draw)
        by = {step.number: step for step in steps}
        ahead = [by[number + 1].z if number + 1 in by else end for number in asked]
        return Samples(own, Trajectory(chain, end, [by[number] for number in asked], ahead), advantage)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_round": Round()}  # a copy draws its own

    def _load_from_state_dict(self, *given: Any) -> None:
        self._round = Round()
        super()._load_from_state_dict(*given)


@dataclass(frozen=True)
class Samples:
    """What was drawn, and how likely it was then.

    Attributes:
        draw: that they were drawn by.
        drawn: the images, and steps to them.
        advantage: of each, (B,).
        before: the likelihood's parts at the time, (parts, B).
    """

    draw: Draw
    drawn: Trajectory
    advantage: Tensor
    before: Tensor | None = None


class Round:
    """The samples that serve the same training steps, by the part of a batch that they are."""

    def __init__(self) -> None:
        self._denoiser: Denoiser | None = None
        self._steps: list[int] = []
        self._parts: dict[object, Samples] = {}

    def of(self, denoiser: Denoiser, step: int, most: int) -> dict[object, Samples] | None:
        """Those that a step may use: a round goes on with the same step, or with a later one until it has had `most`.

        Without a gradient nobody trains: another step begins nothing, and has none.
        """
        last = self._steps[-1] if self._steps else None
        if not torch.is_grad_enabled():
            return self._parts if self._denoiser is denoiser and step == last else None
        if self._denoiser is not denoiser or last is None or step < last or (step > last and len(self._steps) == most):
            self._denoiser, self._steps, self._parts = denoiser, [step], {}
        elif step > last:
            self._steps.append(step)
        return self._parts


def _by_itself(denoiser: Denoiser, draw: Draw) -> Draw:
    """A draw to be kept: without graphs, with conditions of its own, which a caller may write over."""
    rows = len(draw.t)
    every = torch.arange(rows, device=draw.t.device)
    own = {name: getattr(draw, name).detach() for name in ("x0", "t", "noise", "z", "importance")}
    return replace(
        draw,
        **own,
        prediction=Pending(denoiser, own["z"], own["t"], _no_longer),
        cond=chosen_rows(draw.cond, every, rows),
        extra=chosen_rows(draw.extra, every, rows),
        seen=None,
    )


def _no_longer() -> Prediction:
    raise ValueError("a likelihood of samples that serve several steps reads the shared prediction, which belongs to one step")
