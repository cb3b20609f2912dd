"""The error of a model at each noise level, and what of it lies above the floor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.data.images import to_float
from xhat.diffusion.denoiser import Denoiser
from xhat.distributed import ALONE, Shares
from xhat.evaluation.denoising import LEVELS, DenoisingError, reached, summary, x0_errors
from xhat.evaluation.floor import FloorErrors, floor_errors
from xhat.evaluation.reference import Reference
from xhat.tensors import device_of

LEAST_KNOWN, MOST_KNOWN_NUMBERS = 1000, 50_000_000
"""Of the images that the floor looks at: all of MNIST's, 4,000 colour images of 64 pixels."""


@dataclass(frozen=True)
class Excess:
    """What of the error lies above the floor, paired image by image, and the bracket of the floor itself."""

    above: DenoisingError
    lower: DenoisingError
    upper: DenoisingError


@dataclass(frozen=True)
class LevelErrors:
    """Errors of x0 of every image at every level.

    Attributes:
        logsnr: the levels (L).
        errors: mean over pixels of (x0 - x0_hat)², (L, N) float64.
    """

    logsnr: list[float]
    errors: Tensor

    def summary(self) -> DenoisingError:
        """Means and standard errors over images, and what they cost in bits."""
        return summary(self.errors, self.logsnr)

    def over(self, floor: FloorErrors) -> Excess:
        """Compared with the floor of the same images at the same levels."""
        found = (self.errors - floor.lower, floor.lower, floor.upper)
        return Excess(*(summary(errors, self.logsnr) for errors in found))


def level_errors(
    denoiser: Denoiser, real: Reference, images: int, logsnr: Sequence[float] = LEVELS, shares: Shares = ALONE
) -> LevelErrors:
    """The errors of the first images at those levels that the schedule has.

    Args:
        denoiser: the model, in evaluation mode.
        real: images that it was not trained on, if there are any.
        images: how many of them, at most.
        logsnr: noise levels.
        shares: of several processes, who measures what.

    Raises:
        ValueError: the schedule has fewer than two of the levels.
    """
    levels = reached(denoiser.schedule, logsnr)
    x0, cond = real.first(images, device_of(denoiser.net))
    return LevelErrors(levels, x0_errors(denoiser, x0, cond, levels, shares=shares))


def known_floor(train: Reference, real: Reference, images: int, logsnr: Sequence[float]) -> FloorErrors:
    """`floor_errors` of the first images, given so many of the training images as fit into memory, chosen at random.

    Args:
        train: images of the same distribution.
        real: images that are not among them; the floor is given their labels if the network is told them.
        images: how many of them, at most.
        logsnr: noise levels.

    Raises:
        ValueError: an image has a label that no training image has, or the network is told more than labels.
    """
    if real.images.cond:
        raise ValueError(f"nobody knows it for a network that is told {', '.join(real.images.cond)}")
    cpu = torch.device("cpu")
    most = max(LEAST_KNOWN, MOST_KNOWN_NUMBERS // train.images.pixels[0].numel())
    known = train.images
    if len(known) > most:
        known = known.chosen(torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:most])
    x0, _ = real.first(images, cpu)
    if not real.conditional or known.labels is None or real.images.labels is None:
        return floor_errors(to_float(known.pixels[:]), x0, logsnr=logsnr)
    return floor_errors(to_float(known.pixels[:]), x0, known.labels, real.images.labels[:images], logsnr)
