"""A run folder: the EMA weights that carry their config, and how to read them back; what the run was trained on."""

import json
import os
import platform
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from xhat.config.build import build_denoiser
from xhat.config.config import Config, from_values
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError
from xhat.files import read_tensors, write_bytes
from xhat.networks.wrappers import named_for

WEIGHTS, ENVIRONMENT = "ema.safetensors", "environment.json"


@dataclass(frozen=True)
class TrainedRun:
    """What a run left: a denoiser ready to sample, and what it was trained with."""

    denoiser: Denoiser
    config: Config
    shape: DataShape
    step: int


def save_weights(path: Path, denoiser: Denoiser, config: Config, shape: DataShape, step: int) -> None:
    """Write the weights, with the resolved config as metadata, so that the file alone is enough to sample from."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
    metadata = {"config": json.dumps(asdict(config)), "shape": json.dumps(asdict(shape)), "step": str(step)}
    write_bytes(path, save(tensors, metadata=metadata))


def write_environment(run: Path) -> None:
    """Write what the run is trained with and on; nothing that names the machine or the user."""
    from xhat import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    found = {
        "xhat": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": gpu or f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads",
    }
    write_bytes(run / ENVIRONMENT, json.dumps(found).encode())


def read_environment(run: Path) -> dict[str, str]:
    """What `write_environment` wrote; empty for a run of before there was one."""
    try:
        found: dict[str, str] = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


@dataclass(frozen=True)
class Weights:
    """A weights file: config values, shape of the data, step, tensors."""

    path: Path
    values: dict[str, Any]
    shape: DataShape
    step: int
    tensors: dict[str, Tensor]


def read_weights(run: str | Path) -> Weights:
    """The weights file of a run folder, or the file itself.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = Path(run)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise RunError(f"{path} does not exist: train first, for example xhat train mnist --run {shlex.quote(str(run))}")
    try:
        metadata, tensors = read_tensors(path)
        shape = _shape(json.loads(metadata["shape"]))
        return Weights(path, json.loads(metadata["config"]), shape, int(metadata["step"]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise RunError(f"{path} is damaged or not written by xhat: go on with --resume to write it anew") from None


def _shape(values: dict[str, Any]) -> DataShape:
    return DataShape(**{**values, "names": tuple(values.get("names", ()))})


def load(run: str | Path) -> TrainedRun:
    """The trained model of a run folder, or of a weights file, in evaluation mode, on the GPU if there is one.

    Raises:
        RunError: there is none, or it is damaged.
    """
    found = read_weights(run)
    try:
        config = from_values(found.values)
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{found.path} is damaged or not written by xhat: go on with --resume to write it anew") from None
    denoiser = build_denoiser(config, found.shape)
    try:
        denoiser.load_state_dict(named_for(denoiser.state_dict(), found.tensors, "net."))
    except RuntimeError:
        raise RunError(f"{found.path} does not hold the weights of its own config: was it edited?") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedRun(denoiser.to(device).eval(), config, found.shape, found.step)
