"""Starting weights: of a run, of a weights file, or of a diffusers checkpoint, with the config that belongs to them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from xhat.config.config import Config
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError
from xhat.networks.wrappers import named_for
from xhat.pipelines.network import is_pipeline, values_of_pipeline
from xhat.pipelines.reading import INDEX, LORA, require_pipeline
from xhat.runs.given import NET, Given
from xhat.runs.places import WEIGHTS
from xhat.runs.weights import read_weights

MODEL = ("network", "schedule", "target", "variance", "time_input", "labels")
"""The values of a config that the weights were trained for."""
OURS = "config.yaml"
"""What tells a run, whether or not it has weights yet."""


def is_diffusers(path: Path) -> bool:
    """Whether a folder holds a diffusers pipeline."""
    return (path / "model_index.json").is_file()


def values_of(path: str | Path) -> dict[str, Any]:
    """The config values that starting weights bring along: all of a run's, or those of `MODEL` that a checkpoint has.

    Raises:
        RunError: nothing that can be started from.
    """
    if is_pipeline(Path(path)):
        return values_of_pipeline(Path(path))
    if is_diffusers(Path(path)):
        from xhat.pipelines.diffusers_folder import describe

        return dict(describe(path))
    _require_weights(Path(path))
    return dict(read_weights(path).config_values())


def _require_weights(path: Path) -> None:
    """Refuse what holds no weights of ours, by what it is instead.

    Raises:
        RunError: with the way out.
    """
    if not path.exists():
        raise RunError(
            f"{path} does not exist: start from a run, from its {WEIGHTS}, or from the folder of a pipeline of diffusers"
        )
    if path.name == LORA:
        require_pipeline(path.parent)
    if path.is_dir() and not (path / WEIGHTS).exists() and not (path / OURS).exists():
        if any((path / name).exists() for name in (LORA, "config.json")) or any(path.glob("random_states_*.pkl")):
            require_pipeline(path)
        raise RunError(f"{path} is neither a run of xhat nor a pipeline of diffusers: it has no {WEIGHTS} and no {INDEX}")


def require_model(config: Config, path: str, values: dict[str, Any]) -> None:
    """Refuse a config that reads the weights as something else than they were trained for.

    Raises:
        RunError: names the first value that differs, and the way out.
    """
    for key in MODEL:
        if key in values and getattr(config, key) != values[key]:
            raise RunError(
                f"the weights of {path} were trained with {key}: {values[key]}, not {getattr(config, key)}: leave {key} out; "
                "to learn in another space change the loss, for example denoising(space=x0)"
            )


def load_into(denoiser: Denoiser, path: str | Path, shape: DataShape) -> None:
    """Copy starting weights into a denoiser.

    Raises:
        RunError: there are none, or they are of another shape.
    """
    if is_pipeline(Path(path)):
        return  # the network came with them
    weights: dict[str, Tensor]
    if is_diffusers(Path(path)):
        from xhat.pipelines.diffusers_folder import weights as read

        weights = read(path, shape.classes)
    else:
        found = read_weights(path)
        if found.shape != shape:
            raise RunError(f"the weights of {path} are for {_say(found.shape)}; the data have {_say(shape)}")
        weights = named_for(denoiser.state_dict(), found.tensors, NET)
        given = Given.of(denoiser.net) if found.given else Given({})
        given.require_same(found.sums_for(given), weights, path)
        weights = given.put_back(weights, denoiser.state_dict())
    try:
        missing, unexpected = denoiser.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise RunError(f"the weights of {path} do not fit the network: {str(error).splitlines()[-1].strip()}") from None
    lost = [name for name in [*missing, *unexpected] if not name.startswith("schedule.")]
    if lost:
        raise RunError(f"the weights of {path} do not fit the network: {', '.join(lost[:3])}")


def _say(shape: DataShape) -> str:
    classes = "no classes" if shape.classes is None else f"{shape.classes} classes"
    return f"{shape.said()}, {classes}"
