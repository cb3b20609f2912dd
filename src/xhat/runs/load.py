"""A trained model out of its weights file, ready to sample."""

from dataclasses import dataclass
from pathlib import Path

import torch

from xhat.config.build import build_denoiser
from xhat.config.config import Config, from_values
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError
from xhat.networks.wrappers import named_for
from xhat.runs.weights import read_weights


@dataclass(frozen=True)
class TrainedRun:
    """What a run left: a denoiser ready to sample, and what it was trained with."""

    denoiser: Denoiser
    config: Config
    shape: DataShape
    step: int


def load(run: str | Path) -> TrainedRun:
    """The trained model of a run folder, or of a weights file, in evaluation mode, on the GPU if there is one.

    Raises:
        RunError: there is none, or it is damaged.
    """
    found = read_weights(run)
    try:
        config = from_values(found.values)
    except (KeyError, TypeError, ValueError):
        raise RunError(
            f"{found.path} is damaged or not written by xhat: resume training with --resume, which writes it anew"
        ) from None
    denoiser = build_denoiser(config, found.shape)
    try:
        denoiser.load_state_dict(named_for(denoiser.state_dict(), found.tensors, "net."))
    except RuntimeError:
        raise RunError(f"{found.path} does not hold the weights of its own config: was it edited?") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedRun(denoiser.to(device).eval(), config, found.shape, found.step)
