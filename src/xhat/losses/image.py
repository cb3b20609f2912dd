"""Losses on the created image: a penalty of an estimate of the clean image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from xhat.denoiser import Denoiser
from xhat.losses.penalties import Penalty
from xhat.objective import Draw, Loss
from xhat.weightings import ScheduleWeighting, Weighting, constant, on_schedule, refuse_learned


class ImageEstimate(Protocol):
    """How the image that a penalty sees is made; `at_drawn_time` as in `Loss`."""

    at_drawn_time: bool

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor: ...


@dataclass(frozen=True)
class OneStep:
    """x0_hat of the network call already made: no further call, unclamped, so that its gradient never vanishes.

    It is the mean of p(x0 | z_t), not a sample of it: a penalty of it is a lower bound of the samples' if it is convex.
    """

    at_drawn_time = True

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return draw.prediction.x0


class ImageLoss(Loss):
    """weight(logsnr) · penalty(image), with the image estimated from the shared draw; the penalty never sees z.

    Args:
        penalty: images (B, C, H, W) -> (B,).
        image: how the image is estimated.
        weight: where on the noise axis the penalty counts, as in `Denoising`.
        decode: applied to the estimate first, for latent models whose penalty should see pixels.
    """

    def __init__(
        self,
        penalty: Penalty,
        image: ImageEstimate | None = None,
        weight: Weighting | ScheduleWeighting = constant,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        refuse_learned(weight)
        self.penalty, self.image, self.weight, self.decode = penalty, image or OneStep(), weight, decode
        self.at_drawn_time = self.image.at_drawn_time

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        image = self.image(denoiser, draw)
        value = self.penalty(image if self.decode is None else self.decode(image))
        if value.shape != draw.t.shape:
            raise ValueError(
                f"the penalty returned shape {tuple(value.shape)} instead of one value per image, ({draw.t.shape[0]},): "
                "reduce over pixels only, for example with x.flatten(1).mean(1)"
            )
        return on_schedule(self.weight, denoiser.schedule)(denoiser.schedule.logsnr(draw.t)) * value
