"""Contrastive flow matching: a prediction is to be near its own target, and far from another sample's."""

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.losses.denoising import Denoising
from xhat.losses.norms import squared
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES


@LOSSES.register
class Contrastive(Loss):
    """loss - strength · weighting · ‖y_other - y_hat‖², y_other = a x0' + b noise' at the same time, (B,).

    Stoica et al. 2025 (Contrastive flow matching, eq. 7), there of velocities, strength 0.05. x0' and noise' are those of the
    neighbour in the batch: samples 0 and 1 swap, 2 and 3, and so on. The optimum is not the posterior mean m of y but
    (m - strength M)/(1 - strength), M the mean of all targets at that time: conditions are told apart by more than the data
    tell them, as with guidance, and a bound of such a model says so.

    Args:
        loss: Denoising(space, weighting) with the squared norm.
        strength: from 0 to below 1, where the loss would have no minimum.

    Raises:
        ValueError: another loss or strength; when called: a batch of one.
    """

    together = 2

    def __init__(self, loss: Denoising, strength: float = 0.05) -> None:
        super().__init__()
        if not isinstance(loss, Denoising) or loss.norm is not squared or loss.where is not None:
            raise ValueError("Contrastive goes around Denoising(space, weighting) with its squared norm, over all pixels")
        if not 0 <= strength < 1:
            raise ValueError(f"strength is 0 or more and below 1, got {strength}")
        self.loss, self.strength = loss, strength

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        rows, space, schedule = len(draw.t), self.loss.space, denoiser.schedule
        if rows < 2:
            raise ValueError("Contrastive compares samples with their neighbours in the batch: it needs two or more")
        other = torch.arange(rows, device=draw.t.device) ^ 1
        other = torch.where(other < rows, other, other - 2)  # the last of an odd number
        away = squared(draw.prediction.in_space(space) - space.of(schedule, draw.t, draw.x0[other], draw.noise[other]))
        away = self.loss.weighting(schedule.logsnr(draw.t), schedule) * away
        own: Tensor = self.loss(denoiser, draw)
        return own - self.strength * away

    def parts(self) -> tuple[Loss, ...]:
        return (self, *self.loss.parts())

    def density_part(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.loss.density_part(schedule, t)
