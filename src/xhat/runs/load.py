"""A trained model out of its weights file, ready to sample."""

from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch

from xhat.config.build import build_denoiser
from xhat.config.config import Config, from_values
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import DamagedError, RunError
from xhat.runs.used import require_used
from xhat.runs.weights import WAY_OUT, Weights, read_weights
from xhat.tensors import not_finite


@dataclass(frozen=True)
class TrainedRun:
    """What a run left: a denoiser ready to sample, and what it was trained with."""

    denoiser: Denoiser
    config: Config
    shape: DataShape
    step: int


@dataclass(frozen=True)
class TrainedObjects:
    """What a run of objects left: its weights in a denoiser of the same kind.

    Attributes:
        denoiser: in evaluation mode.
        shape: of the data.
        step: steps trained.
    """

    denoiser: Denoiser
    shape: DataShape
    step: int


@overload
def load(run: str | Path) -> TrainedRun: ...


@overload
def load(run: str | Path, into: Denoiser) -> TrainedObjects: ...


def load(run: str | Path, into: Denoiser | None = None) -> TrainedRun | TrainedObjects:
    """The trained model of a run folder, or of a weights file, in evaluation mode.

    Args:
        run: a folder, or its ema.safetensors.
        into: a denoiser that takes the weights, for a run of objects that no config names; it stays on its device. Without
            it the denoiser is built as the run's config says, on the GPU if there is one.

    Raises:
        RunError: there is none, it is damaged, or its weights are of another network.
    """
    found = read_weights(run)
    return _built(found) if into is None else _filled(found, into)


def _built(found: Weights) -> TrainedRun:
    values = found.config_values()
    require_used(found.used, found.path)
    try:
        config = from_values(values)
    except DamagedError as error:
        raise RunError(f"{found.path} is damaged or not written by xhat ({error}): {WAY_OUT}") from None
    denoiser = build_denoiser(config, found.shape)
    try:
        found.fill(denoiser)
    except RuntimeError:
        raise RunError(f"{found.path} does not hold the weights of its own config: was it edited?") from None
    _require_finite(denoiser, found.path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedRun(denoiser.to(device).eval(), config, found.shape, found.step)


def _filled(found: Weights, denoiser: Denoiser) -> TrainedObjects:
    try:
        found.fill(denoiser)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise RunError(f"{found.path} holds the weights of another denoiser: {line}") from None
    _require_finite(denoiser, found.path)
    return TrainedObjects(denoiser.eval(), found.shape, found.step)


def _require_finite(denoiser: Denoiser, path: Path) -> None:
    if (name := not_finite(denoiser)) is not None:
        raise RunError(f"{path} holds weights that are not finite ({name}), of a training that diverged: nothing comes of them")
