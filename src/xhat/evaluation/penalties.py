"""Penalties of images: those of samples say what an image loss has done, beside those of real images."""

from collections.abc import Mapping

from torch import Tensor

from xhat.data.images import to_float
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import Penalty
from xhat.objective.objective import Objective


def mean_penalties(images: Tensor, penalties: Mapping[str, Penalty]) -> dict[str, float]:
    """The mean of each penalty over uint8 images (N, C, H, W)."""
    values = to_float(images)
    return {name: float(penalty(values).mean()) for name, penalty in penalties.items()}


def own_penalties(objective: Objective) -> dict[str, Penalty]:
    """What an objective's image losses see in one image, by the names of their terms.

    Those that compare with the clean image have nothing to say of a sample, and are left out.
    """
    losses = {name: term.loss for name, term in objective.terms.items()}
    found = {name: loss.of_images() for name, loss in losses.items() if isinstance(loss, ImageLoss)}
    return {name: penalty for name, penalty in found.items() if penalty is not None}
