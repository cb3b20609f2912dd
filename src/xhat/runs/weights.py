"""The weights file of a run: the averaged weights, with their config and the shape of the data as metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xhat.config.config import Config, to_values
from xhat.config.earlier import upgraded
from xhat.config.origins import needed_by
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import DamagedError, RunError
from xhat.files.tensors import Copied, read_tensors
from xhat.files.values import of_type, plain_values
from xhat.networks.wrappers import named_for, unwrapped
from xhat.runs.given import NET, Given
from xhat.runs.places import weights_of
from xhat.runs.used import Used, values_of_used

KINDS: dict[str, Any] = {"shape": DataShape, "used": dict[str, Used], "given": dict[str, int]}
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
        given: what is not in it, see `Given`.
    """

    path: Path
    values: dict[str, Any] | None
    shape: DataShape
    step: int
    tensors: dict[str, Tensor]
    used: dict[str, Used]
    given: dict[str, int]

    @property
    def data(self) -> str | None:
        """What the config calls the data; None without a config."""
        return None if self.values is None else self.values.get("data")

    def fill(self, denoiser: Denoiser) -> None:
        """Put the weights into a denoiser, whose network has what they were given.

        Raises:
            RunError: it has other frozen weights.
            RuntimeError: it is another network.
        """
        own, given = denoiser.state_dict(), Given.of(denoiser.net) if self.given else Given({})
        tensors = named_for(own, self.tensors, NET)
        given.require_same(self.sums_for(given), tensors, self.path)
        denoiser.load_state_dict(given.put_back(tensors, own))

    def sums_for(self, given: Given) -> dict[str, int]:
        """What the network was given, under a network's own names, where it was saved in wrappers."""
        return (
            self.given
            if self.given.keys() <= given.sums.keys()
            else {own: self.given[n] for n, own in unwrapped(self.given).items()}
        )

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


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    config: Config | None,
    shape: DataShape,
    step: int,
    given: Given | None = None,
) -> None:
    """Write `weights_file` at once."""
    weights_file(weights, config, shape, step, given).write(path)


def weights_file(
    weights: Mapping[str, Tensor], config: Config | None, shape: DataShape, step: int, given: Given | None = None
) -> Copied:
    """A copy of the weights, with the resolved config as metadata, so that the file alone is enough to sample from.

    Args:
        weights: of a denoiser, without what it was given.
        config: that it was built of; None of objects.
        shape: of the data.
        step: steps trained.
        given: what of the network does not learn: the file knows it by its checksums, and whoever reads it has to bring it.
    """
    given = given or Given({})
    metadata = {"shape": json.dumps(asdict(shape)), "step": str(step), "given": json.dumps(dict(given.sums))}
    if config is not None:
        metadata |= {"config": json.dumps(to_values(config)), "used": json.dumps(values_of_used(needed_by(config)))}
    return Copied(weights, metadata)


def read_weights(run: str | Path) -> Weights:
    """The weights file of a run folder, or the file itself.

    Raises:
        RunError: there is none, or it is damaged.
        OSError: it cannot be read.
    """
    path = weights_of(run)
    try:
        metadata, tensors = read_tensors(path)
        shape, used, given = (of_type(plain_values(metadata.get(key, "{}")), kind) for key, kind in KINDS.items())
        values = upgraded(of_type(plain_values(metadata["config"]), dict[str, Any])) if "config" in metadata else None
        return Weights(path, values, shape, int(metadata["step"]), tensors, used, given)
    except (DamagedError, KeyError, ValueError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise RunError(f"{path} is damaged or not written by xhat ({why}): {WAY_OUT}") from None
