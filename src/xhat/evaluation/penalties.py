"""Penalties of images: those of samples say what an image loss has done, beside those of real images."""

from collections.abc import Mapping

from torch import Tensor

from xhat.data.images import to_float
from xhat.errors import UsageError, first_line
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import Penalty
from xhat.losses.rewards.policy import FromSamples
from xhat.objective.objective import Objective


def mean_penalties(images: Tensor, penalties: Mapping[str, Penalty]) -> dict[str, float]:
    """The mean of each penalty over samples (N, ...), uint8 images or floats.

    Raises:
        UsageError: a penalty cannot be computed, or has no value for each sample.
    """
    values = to_float(images)
    return {name: _mean(name, penalty, values) for name, penalty in penalties.items()}


def _mean(name: str, penalty: Penalty, values: Tensor) -> float:
    try:
        found = penalty(values)
    except Exception as error:  # of a user's own code
        shape, why = tuple(values.shape), first_line(error)
        raise UsageError(f"the penalty {name} cannot be computed of samples {shape}: {why}") from error
    if not isinstance(found, Tensor) or found.shape != (len(values),):
        raise UsageError(f"the penalty {name} has no value for each of {len(values)} samples: reduce over pixels only")
    return float(found.mean())


def own_penalties(objective: Objective) -> dict[str, Penalty]:
    """What an objective's image losses see in one image, and its rewards, by the names of their terms.

    Those that compare with the clean image have nothing to say of a sample, and are left out. Of a pipeline the images are what
    it decodes, and losses of the latents themselves are left out, too.
    """
    losses, decoded = {name: term.loss for name, term in objective.terms.items()}, objective.denoiser.decode is not None
    judging = {name: loss for name, loss in losses.items() if isinstance(loss, ImageLoss | FromSamples)}
    found = {name: loss.of_images(decoded=decoded) for name, loss in judging.items()}
    return {name: penalty for name, penalty in found.items() if penalty is not None}
