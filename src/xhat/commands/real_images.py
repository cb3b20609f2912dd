"""The real images that a command measures a run on."""

from xhat.commands.terminal import notes
from xhat.data.summary import notices
from xhat.errors import UsageError
from xhat.evaluation.reference import RealImages, other_images, own_images
from xhat.runs.load import TrainedRun


def real_images(trained: TrainedRun, data: str | None) -> RealImages:
    """The images that `data` names, by default the run's own data; what was noticed while reading others is said.

    Raises:
        UsageError: there is one image only; or as for `own_images`.
        DataError: they cannot be read.
    """
    config, shape = trained.config, trained.shape
    real = own_images(shape, config.data, config.held_out) if data is None else other_images(shape, data)
    if len(real.measured) < 2:
        name = real.measured.images.name
        raise UsageError(f"{name} holds one image, which says nothing of a spread: name at least two with --data")
    if data is not None:
        notes(notices(real.measured.images))
    return real
