"""Forward-process contrast: towards what good samples are, and away from what bad ones are, by the denoising loss alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.targets import Target, V
from xhat.losses.chains import FullChain
from xhat.losses.near import Near
from xhat.losses.rewards.advantages import NORMALISED
from xhat.losses.rewards.policy import Advantage, FromSamples, Reward
from xhat.objective.draw import Draw
from xhat.registry import LOSSES
from xhat.tensors import image_mean, over_images


@LOSSES.register
class ForwardContrast(FromSamples):
    """r ‖(1 - b) old + b new - y‖² + (1 - r) ‖(1 + b) old - b new - y‖², means over pixels, of the old model's samples, (B,).

    DiffusionNFT (Zheng et al. 2026, eq. 5 to 8): old and new are the predictions of the model that drew the samples and of the
    one that is trained, y what they predict, r = ½ + ½ clip(advantage/most, -1, 1) the share of a sample that is good. The
    times are the draw's, weighted as if they were uniform. Its optimum is old + Cov(2r - 1, y | z)/b: one step of improvement,
    however long it is trained, until the old model is replaced. Where new is old, its gradient is b (2r - 1) times that of the
    denoising loss: a policy gradient by a bound without weights.

    Args:
        reward: as of `PolicyGradient`.
        reference: the old model, as of `ToReference`: another denoiser, or None for the model without its adapters.
        along: as of `PolicyGradient`; the old model draws.
        strength: b above; the smaller, the further a step goes for the same difference.
        most: the advantage from which a sample counts as entirely good, or bad.
        space: of y and of the predictions.
        group: as of `PolicyGradient`.
        advantage: as of `PolicyGradient`.
        decode: as of `ImageLoss`.

    Raises:
        ValueError: as for `FromSamples`; a strength or most that is not above 0.
    """

    def __init__(
        self,
        reward: Reward,
        reference: Denoiser | None = None,
        along: FullChain | None = None,
        strength: float = 1.0,
        most: float = 2.0,
        space: Target = V,
        group: int | None = None,
        advantage: Advantage = NORMALISED,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        FromSamples.__init__(self, reward, along, group, advantage, decode)
        if not (strength > 0 and most > 0):
            raise ValueError(f"strength and most are above 0, got {strength} and {most}")
        self.reference, self.strength, self.most, self.space = Near(reference), strength, most, space

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        draw = self.grouped(draw)
        old = self.reference.model(denoiser, draw)
        with Near.alike(denoiser):
            with torch.no_grad(), self.reference.as_reference(denoiser):
                end, _ = self.along.chain(old, draw).run()
            good = 0.5 + 0.5 * (self.judged(denoiser, end, draw) / self.most).clamp(-1, 1)
            schedule, t, noise = denoiser.schedule, draw.t, draw.normal("contrast")
            z = over_images(schedule.alpha(t), end) * end + over_images(schedule.sigma(t), end) * noise
            with torch.no_grad(), self.reference.as_reference(denoiser):
                before = old(z, t, draw.cond).in_space(self.space)
            now = denoiser(z, t, draw.cond).in_space(self.space)
        y = self.space.of(schedule, t, end, noise)
        step = self.strength * (now - before)
        towards, away = (image_mean((before + sign * step - y).square()) for sign in (1, -1))
        return draw.importance * (good * towards + (1 - good) * away)
