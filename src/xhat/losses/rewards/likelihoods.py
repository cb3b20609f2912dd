"""How likely the model finds its own samples: by the steps that drew them, or by a bound of the finished image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from xhat.budgets import require_at_most
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.gaussians import Gaussian
from xhat.diffusion.weightings import Weighting, elbo, require_weighting
from xhat.losses.near import Near
from xhat.objective.draw import Draw
from xhat.registry import LIKELIHOODS
from xhat.sampling.chain import Chain, Step
from xhat.sampling.samplers import Sampler
from xhat.tensors import image_sum, over_images


@dataclass(frozen=True)
class Trajectory:
    """What the model drew, without gradient.

    Attributes:
        chain: the steps.
        end: the images, (B, ...).
        steps: those that were asked for, in that order.
        ahead: where each of them led, (B, ...).
    """

    chain: Chain
    end: Tensor
    steps: Sequence[Step]
    ahead: Sequence[Tensor]


class Likelihood(Protocol):
    """An estimate of log p of samples, in nats, whose gradient is followed: a factor times a sum of parts.

    Each part is a log-probability by itself, whose ratio to what it was can be clipped.
    """

    def require(self, sampler: Sampler, steps: int) -> None:
        """Refuse a chain that it can say nothing of.

        Raises:
            ValueError: it can not.
        """
        ...

    def recorded(self, chain: Chain) -> Sequence[int]:
        """Numbers of the steps to be recorded."""
        ...

    def factor(self, chain: Chain) -> float:
        """What the sum of the parts is multiplied by."""
        ...

    def __call__(self, denoiser: Denoiser, drawn: Trajectory, draw: Draw) -> Tensor:
        """The parts of each sample, but for what does not depend on the network, (parts, B), float64."""
        ...


@LIKELIHOODS.register
@dataclass(frozen=True)
class StepLikelihood:
    """(n - 1)/K sum over K random steps of log p(z_s | z_t), of the chain that drew a sample (Black et al. 2024, DDPO).

    Each step is a part. The last, into t = 0, has no noise and so no density: what it changes is not learned of, which is the
    bias of it.

    Args:
        steps: K; each is one network call with gradient.
    """

    steps: int = 4

    def require(self, sampler: Sampler, steps: int) -> None:
        if not sampler.stochastic:
            raise ValueError(f"steps of {sampler} have no density: use DDPM() or DDIM(eta), or BoundLikelihood()")
        if not 1 <= self.steps < steps:
            raise ValueError(
                f"StepLikelihood({self.steps}), but {steps - 1} steps of the chain have noise: choose 1 to {steps - 1}"
            )

    def recorded(self, chain: Chain) -> Sequence[int]:
        chosen: list[int] = chain.uniform(chain.steps - 1, "policy").argsort()[: self.steps].tolist()
        return chosen

    def factor(self, chain: Chain) -> float:
        return (chain.steps - 1) / self.steps

    def __call__(self, denoiser: Denoiser, drawn: Trajectory, draw: Draw) -> Tensor:
        return torch.stack([self._again(drawn.chain, *each) for each in zip(drawn.steps, drawn.ahead, strict=True)])

    def _again(self, chain: Chain, step: Step, ahead: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self._of(chain, step, ahead)
        found: Tensor = recompute(self._of, chain, step, ahead, use_reentrant=False)
        return found

    @staticmethod
    def _of(chain: Chain, step: Step, ahead: Tensor) -> Tensor:
        with Near.alike(chain.model.denoiser):  # in here, for the backward pass comes through once more
            there = chain.sampler.transition(chain.model, step.z, chain.time(step.number), chain.time(step.number + 1))
        return Gaussian(there.mean.double(), there.log_variance.double()).log_prob(ahead.double())


@LIKELIHOODS.register
@dataclass(frozen=True)
class BoundLikelihood:
    """-(1 - t_min) · the mean over K times of weighting · ‖noise - noise_hat‖², at noised versions of the finished image.

    With `elbo` it is the continuous-time variational bound in nats (Kingma et al. 2021, eq. 17), which Choi et al. 2026
    (Rethinking the design space of reinforcement learning for diffusion models) find to decide more than the loss around it.
    It is one part. No trajectory is kept, and any sampler will do. As in our bound's own estimator the times are strata of
    [t_min, 1], and each is seen with a noise and with its opposite; benchmarks/policy.py measures what that takes off the
    gradient's noise.

    Args:
        draws: K, an even number: two network calls with gradient for each two.
        weighting: of the noise loss by noise level; others than `elbo` are bounds of weighted noise levels.

    Raises:
        ValueError: an odd number of draws.
    """

    draws: int = 4
    weighting: Weighting = elbo

    def __post_init__(self) -> None:
        if self.draws < 2 or self.draws % 2:
            raise ValueError(f"BoundLikelihood draws noises and their opposites, an even number, got {self.draws}")
        require_at_most(10_000, draws=self.draws)
        require_weighting(self.weighting)

    def require(self, sampler: Sampler, steps: int) -> None:
        """Any chain will do."""

    def recorded(self, chain: Chain) -> Sequence[int]:
        return ()

    def factor(self, chain: Chain) -> float:
        return 1.0

    def __call__(self, denoiser: Denoiser, drawn: Trajectory, draw: Draw) -> Tensor:
        pairs = self.draws // 2
        offset, low = float(draw.uniform(1, "bound")[0]), denoiser.schedule.t_min
        total = torch.zeros_like(draw.t, dtype=torch.float64)
        for k in range(pairs):
            t = low + (1 - low) * (torch.full_like(draw.t, k + offset) / pairs)
            t = t if denoiser.schedule.steps is None else denoiser.schedule.on_grid(t)
            noise = draw.normal("bound", k)
            for sign in (1.0, -1.0):
                total = total + self._again(denoiser, drawn.end, t, sign * noise, draw)
        return -(1 - low) / self.draws * total[None]

    def _again(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        if not torch.is_grad_enabled():
            return self._of(denoiser, x0, t, noise, draw)
        found: Tensor = recompute(self._of, denoiser, x0, t, noise, draw, use_reentrant=False)
        return found

    def _of(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        """weighting · ‖noise - noise_hat‖², (B,)."""
        schedule = denoiser.schedule
        z = over_images(schedule.alpha(t), x0) * x0 + over_images(schedule.sigma(t), x0) * noise
        with Near.alike(denoiser):  # in here, for the backward pass comes through once more
            error = image_sum((denoiser(z, t, draw.cond).noise - noise).double().square())
        return self.weighting(schedule.logsnr(t), schedule) * error
