"""What a term is: a loss on the shared draw, its weight, and when it counts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.objective.describe import described
from xhat.objective.draw import Draw
from xhat.objective.gates import Gate, always
from xhat.objective.multipliers import Multiplier


class Loss(nn.Module):
    """A term's value per image: forward(denoiser, draw) -> (B,), unweighted and unreduced.

    Attributes:
        at_drawn_time: whether the value depends on the drawn t, and so is importance-weighted. A loss on a whole chain
            from pure noise does not.
        calls_network: whether it calls the network beyond the shared draw. At steps where it counts the shared call is then
            recomputed in the backward pass, so that never more than one call's activations are in memory.
        trains_variance: whether it has a gradient in the reverse variance.
        is_penalty: whether it is a penalty of an image instead of a regression on what the network predicts.
        observes: whether `update` does something: then the objective gathers its values of the whole global batch.
        together: how many samples in a row it compares with each other, of which none can be looked at alone; 0 is all.
    """

    at_drawn_time: bool = True
    calls_network: bool = False
    trains_variance: bool = False
    is_penalty: bool = False
    observes: bool = False
    together: int = 1

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(denoiser, draw) -> (B,)")

    def __repr__(self) -> str:
        return described(self)

    def parts(self) -> "tuple[Loss, ...]":
        """The losses that it is made of; itself if it is made of none."""
        return (self,)

    def scale(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        """The weight by noise level that is in the value, (B,); what a penalty's mean is to be divided by."""
        return torch.ones_like(draw.t)

    def offset(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        """The summand of the value that depends on the drawn t alone, (B,): a time sampler that follows the loss ignores it."""
        return torch.zeros_like(draw.t)

    def update(self, schedule: Schedule, t: Tensor, value: Tensor) -> None:
        """Take in the values (n,) of images at times t (n,), not importance-weighted, of the whole global batch of a step."""

    def density_part(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The part of its weighting that is a density of times, at t (n,): see `from_density`."""
        return torch.ones_like(t)

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        """The weight (N,) that this loss puts on ‖noise - noise_hat‖² at each logsnr; None if it is no such loss."""
        return None


@dataclass(frozen=True)
class Term:
    """One summand of an objective.

    Attributes:
        loss: what it measures.
        weight: its factor lambda, a number, or a multiplier that finds one; not to be mixed up with a loss's `weighting`, a
            function of the noise level.
        when: at which steps it counts.
    """

    loss: Loss
    weight: float | Multiplier = 1.0
    when: Gate = always

    def __repr__(self) -> str:
        weight = f"{self.weight:g}" if isinstance(self.weight, int | float) else described(self.weight)
        when = "" if self.when is always else f", {described(self.when)}"
        return f"{weight} · {described(self.loss)}{when}"
