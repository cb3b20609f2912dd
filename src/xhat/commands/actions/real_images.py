"""The real images that a command measures a run on."""

from dataclasses import replace

from xhat.commands.terminal import notes
from xhat.config.data import build_parts
from xhat.data.summary import notices
from xhat.diffusion.denoiser import Condition
from xhat.errors import UsageError
from xhat.evaluation.reference import RealImages, Reference, other_images, own_images
from xhat.runs.load import TrainedRun
from xhat.tensors import device_of


def real_images(trained: TrainedRun, data: str | None) -> RealImages:
    """The images that `data` names, by default the run's own data; what was noticed while reading others is said.

    Raises:
        UsageError: there is one image only; or as for `own_images`.
        DataError: they cannot be read.
    """
    config, shape = trained.config, trained.shape
    if data is None:
        real = own_images(shape, build_parts(config, shape))
    else:
        real = other_images(shape, build_parts(replace(config, data=data, held_out=0.0), shape))
    if len(real.measured) < 2:
        name = real.measured.images.name
        raise UsageError(f"{name} holds one image, which says nothing of a spread: name at least two with --data")
    if data is not None:
        notes(notices(real.measured.images))
    return real


def conditions_of(trained: TrainedRun, real: Reference, n: int) -> Condition | None:
    """What n samples of a run are told beside classes, in turn: what the real ones are; None if it is told nothing else."""
    return real.told(n, device_of(trained.denoiser.net)) if trained.shape.conditions else None
