"""The weights file of a run: the averaged weights, with their config and the shape of the data as metadata."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from xhat.config.config import Config
from xhat.config.earlier import upgraded
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError
from xhat.files import read_tensors, write_bytes

WEIGHTS = "ema.safetensors"
WAY_OUT = "resume training with --resume, which writes it anew"


@dataclass(frozen=True)
class Weights:
    """A weights file: config values, shape of the data, step, tensors."""

    path: Path
    values: dict[str, Any]
    shape: DataShape
    step: int
    tensors: dict[str, Tensor]


def save_weights(path: Path, denoiser: Denoiser, config: Config, shape: DataShape, step: int) -> None:
    """Write the weights, with the resolved config as metadata, so that the file alone is enough to sample from."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
    metadata = {"config": json.dumps(asdict(config)), "shape": json.dumps(asdict(shape)), "step": str(step)}
    write_bytes(path, save(tensors, metadata=metadata))


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
        return Weights(path, upgraded(json.loads(metadata["config"])), shape, int(metadata["step"]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise RunError(f"{path} is damaged or not written by xhat: {WAY_OUT}") from None


def _shape(values: dict[str, Any]) -> DataShape:
    return DataShape(**{**values, "names": tuple(values.get("names", ()))})
