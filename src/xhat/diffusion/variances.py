"""The variance of the reverse step p(z_s | z_t): the published choices."""

from typing import Protocol

import torch
from torch import Tensor

from xhat.diffusion.gaussians import transition
from xhat.diffusion.schedules import Schedule
from xhat.registry import VARIANCES
from xhat.tensors import over_images


class Variance(Protocol):
    """A reverse variance; `outputs` is the number of network channels it needs per image channel."""

    @property
    def outputs(self) -> int: ...

    def log_variance(self, schedule: Schedule, z: Tensor, t: Tensor, s: Tensor, logits: Tensor | None) -> Tensor:
        """log variance of p(z_s | z_t), broadcastable to z.

        Args:
            schedule: the schedule.
            z: images (B, C, H, W), for shape and dtype.
            t: this time, (B,).
            s: the next time, (B,), s < t.
            logits: the network's variance channels (B, C, H, W), if it has any.
        """
        ...


class Posterior:
    """beta-tilde, the variance of q(z_s | z_t, x0): the right one if the data were a point (DDPM, section 3.2)."""

    outputs = 1

    def log_variance(self, schedule: Schedule, z: Tensor, t: Tensor, s: Tensor, logits: Tensor | None) -> Tensor:
        return over_images(_log_posterior(schedule, t, s), z)


class Forward:
    """beta at every step, the variance of q(z_t | z_s): the right one if the data were N(0, I) (DDPM, section 3.2).

    diffusers' "fixed_large". DDPM's own code has another variance at the step into the data, see `FixedLarge`: samples are the
    same, since that step adds no noise, but L_0 is not.
    """

    outputs = 1

    def log_variance(self, schedule: Schedule, z: Tensor, t: Tensor, s: Tensor, logits: Tensor | None) -> Tensor:
        return over_images(transition(schedule, t, s).forward_variance.log(), z)


class FixedLarge:
    """beta, but beta-tilde_2 at the step into the data: "fixed large" of DDPM's and Improved DDPM's code.

    DDPM's bits/dim with beta are those of this choice, whose reconstruction term L_0 is not that of `Forward`.
    """

    outputs = 1

    def log_variance(self, schedule: Schedule, z: Tensor, t: Tensor, s: Tensor, logits: Tensor | None) -> Tensor:
        forward = transition(schedule, t, s).forward_variance.log()
        return over_images(torch.where(s < schedule.t_min, _log_posterior(schedule, t, s), forward), z)


class Learned:
    """exp(f log beta + (1 - f) log beta-tilde), f = (1 + v)/2 for the network's v (Nichol & Dhariwal 2021, eq. 15)."""

    outputs = 2

    def log_variance(self, schedule: Schedule, z: Tensor, t: Tensor, s: Tensor, logits: Tensor | None) -> Tensor:
        if logits is None:
            raise ValueError("LEARNED variance needs a network with 2C output channels")
        high = over_images(transition(schedule, t, s).forward_variance.log(), z)
        low = over_images(_log_posterior(schedule, t, s), z)
        return low + (1 + logits) / 2 * (high - low)


def _log_posterior(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """log beta-tilde; a step to s = 0 would have variance 0 and takes that of the step before, as both DDPM codes do."""
    t, s = t.to(torch.float64), s.to(torch.float64)
    into_data = s < schedule.t_min
    s = torch.where(into_data, schedule.t_min, s)
    t = torch.where(into_data, t.clamp(min=2 * schedule.t_min), t)
    return transition(schedule, t, s).posterior_variance.log()


POSTERIOR = Posterior()
"""beta-tilde: the variance of a step back that knows x0."""
FORWARD = Forward()
"""beta: the variance that the forward step adds."""
FIXED_LARGE = FixedLarge()
"""beta, but beta-tilde of the second step for the step into the data: that of DDPM's own code."""
LEARNED = Learned()
"""Between the two, by a second output of the network."""


for _name, _variance in {"POSTERIOR": POSTERIOR, "FORWARD": FORWARD, "FIXED_LARGE": FIXED_LARGE, "LEARNED": LEARNED}.items():
    VARIANCES.add(_name, _variance)
