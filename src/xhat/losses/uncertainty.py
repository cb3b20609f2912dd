"""A denoising loss that balances its noise levels by the uncertainty it finds (EDM2)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.weightings import Weighting, constant, density_part, require_weighting
from xhat.losses.denoising import Denoising
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES


@LOSSES.register
class LearnedUncertainty(Loss):
    """outer · (loss · exp(-u(logsnr)) + u(logsnr)), (B,): EDM2's learned uncertainty (Karras et al. 2024, eq. 14-15).

    u is a linear map of random Fourier features of c_noise = -logsnr/8, zero at first. At the optimum exp(u) is the mean of the
    loss at each noise level, so that every level contributes as `outer` says; EDM2's is its density of noise.

    Args:
        loss: that is balanced, its own weighting included.
        outer: weighs the balanced loss and u alike, for example from_density(LogNormalSigma(-0.4, 1)).
        features: number of Fourier features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, loss: Denoising, outer: Weighting = constant, features: int = 128) -> None:
        super().__init__()
        if not isinstance(loss, Denoising):
            got = type(loss).__name__
            raise ValueError(f"a learned uncertainty balances a denoising loss, got {got}: give Denoising(space, weighting)")
        if features < 1:
            raise ValueError(f"a learned uncertainty needs at least 1 feature, got {features}")
        require_weighting(outer)
        self.loss, self.outer = loss, outer
        own = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * torch.pi * torch.randn(features, generator=own))
        self.register_buffer("phases", 2 * torch.pi * torch.rand(features, generator=own))
        self.gains = nn.Parameter(torch.zeros(features))

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return self.loss.weighted(denoiser, draw, self.weighting) + self.offset(denoiser, draw)

    def uncertainty(self, logsnr: Tensor) -> Tensor:
        """u(logsnr), (B,)."""
        angles = (-logsnr / 8).unsqueeze(-1) * self.frequencies + self.phases
        return (angles.cos() * self.gains).sum(-1) * math.sqrt(2 / self.gains.numel())

    def weighting(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """outer · the loss's own · exp(-u), (B,): what the error is multiplied with now."""
        base = self.outer(logsnr, schedule) * self.loss.weighting(logsnr, schedule)
        return base * torch.exp(-self.uncertainty(logsnr))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("gains", "frequencies", "phases"):  # where it was a weighting, in earlier versions
            if (earlier := f"{prefix}weight.{name}") in state_dict:
                state_dict[prefix + name] = state_dict.pop(earlier)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def parts(self) -> tuple[Loss, ...]:
        return (self, *self.loss.parts())

    def offset(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        logsnr = denoiser.schedule.logsnr(draw.t)
        return self.outer(logsnr, denoiser.schedule) * self.uncertainty(logsnr)

    def density_part(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.loss.density_part(schedule, t) * density_part(self.outer, schedule, t)

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        return self.loss.noise_weight_with(denoiser, logsnr, self.weighting)
