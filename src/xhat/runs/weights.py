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
from xhat.config.origins import needed_by
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError
from xhat.files import apart, read_tensors, write_bytes
from xhat.runs.used import Used, as_json, from_json

WEIGHTS = "ema.safetensors"
WAY_OUT = "resume training with --resume, which writes it anew"


@dataclass(frozen=True)
class Weights:
    """A weights file.

    Attributes:
        path: of the file.
        values: of the config; None for objects that no config names.
        shape: of the data.
        step: steps trained.
        tensors: by name.
        used: the files of parts that the config needs, by name.
    """

    path: Path
    values: dict[str, Any] | None
    shape: DataShape
    step: int
    tensors: dict[str, Tensor]
    used: dict[str, Used]

    @property
    def data(self) -> str | None:
        """What the config calls the data; None without a config."""
        return None if self.values is None else self.values.get("data")

    def config_values(self) -> dict[str, Any]:
        """Those of the config.

        Raises:
            RunError: there is none, and what to do instead.
        """
        if self.values is None:
            raise RunError(
                f"{self.path} was trained by xhat.fit on objects that no config names: build the denoiser in Python, then "
                "xhat.load(run, into=denoiser)"
            )
        return self.values


def save_weights(path: Path, denoiser: Denoiser, config: Config | None, shape: DataShape, step: int) -> None:
    """Write the weights, with the resolved config as metadata, so that the file alone is enough to sample from."""
    tensors = apart(denoiser.state_dict())
    metadata = {"shape": json.dumps(asdict(shape)), "step": str(step)}
    if config is not None:
        metadata |= {"config": json.dumps(asdict(config)), "used": as_json(needed_by(config))}
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
        shape, used = _shape(json.loads(metadata["shape"])), from_json(metadata.get("used", "{}"))
        values = upgraded(json.loads(metadata["config"])) if "config" in metadata else None
        return Weights(path, values, shape, int(metadata["step"]), tensors, used)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise RunError(f"{path} is damaged or not written by xhat: {WAY_OUT}") from None


def _shape(values: dict[str, Any]) -> DataShape:
    as_tuples: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return DataShape(**as_tuples)
