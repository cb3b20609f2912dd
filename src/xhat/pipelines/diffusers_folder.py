"""Checkpoints of diffusers on disk: as a denoiser, and as the config and the weights of a run that goes on from one.

A checkpoint is a local folder as `DDPMPipeline.save_pretrained` writes it: model_index.json, unet/ (a UNet2DModel,
unconditional or with class labels) and scheduler/.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Discrete
from xhat.diffusion.targets import Target
from xhat.diffusion.variances import Variance
from xhat.errors import RunError, first_line
from xhat.pipelines.diffusers_unet import DiffusersUNet
from xhat.pipelines.reading import quiet, read_model
from xhat.pipelines.schedulers import TARGETS, VARIANCES, build_scheduler, import_diffusers, known, parse, warn_of_clipping


@dataclass(frozen=True)
class Pipeline:
    """What a checkpoint folder says of itself: its two configs as JSON, and what they mean here."""

    unet: str
    scheduler: str
    prediction_type: str
    target: Target
    variance_name: str
    variance: Variance
    schedule: Discrete


def load_diffusers(folder: str | Path, target: Target | None = None, *, classes: int | None = None) -> Denoiser:
    """The denoiser of a local diffusers checkpoint, in evaluation mode, float32; schedule, target and variance are its own.

    Args:
        folder: of the pipeline.
        target: None, or what you believe the network predicts; it cannot be changed, only checked.
        classes: see `DiffusersUNet`.

    Raises:
        RunError: no such folder, not a pipeline of a UNet2DModel and a scheduler of T steps, a damaged file, pickled weights,
            another target, or diffusers is not installed.
    """
    pipeline = _read_pipeline(folder)
    if target is not None and target is not pipeline.target:
        own = pipeline.target.name
        raise RunError(
            f"{folder} predicts {own}, not {target.name}: keep target {own}, which its weights were trained for, and convert "
            f"the loss instead, denoising(space={target.name})"
        )
    net = _read_network(folder, pipeline, classes)
    warn_of_clipping(build_scheduler(json.loads(pipeline.scheduler)))
    try:
        return Denoiser(net, pipeline.schedule, pipeline.target, variance=pipeline.variance).eval()
    except ValueError as error:
        raise RunError(f"{folder}: {error}") from None


def describe(folder: str | Path) -> dict[str, str]:
    """The config of a run that goes on from a checkpoint: expressions for network, schedule, target and variance.

    They hold all that the checkpoint's configs say, so that a run's own weights file needs the folder no more.

    Raises:
        RunError: as for `load_diffusers`, but for the weights, which are not read.
    """
    p = _read_pipeline(folder)
    warn_of_clipping(build_scheduler(json.loads(p.scheduler)))
    network = f"diffusers_unet({p.unet!r}, {p.prediction_type!r})"
    schedule = f"diffusers_schedule({p.scheduler!r})"
    return {"network": network, "schedule": schedule, "target": p.target.name, "variance": p.variance_name}


def weights(folder: str | Path, classes: int | None = None) -> dict[str, Tensor]:
    """The checkpoint's weights in the names of a Denoiser's state_dict, "net.unet....", float32.

    Args:
        folder: of the pipeline.
        classes: as the network of the run has it; see `DiffusersUNet`.

    Raises:
        RunError: as for `load_diffusers`.
    """
    state = _read_network(folder, _read_pipeline(folder), classes).state_dict()
    return {f"net.{name}": value for name, value in state.items()}


def _read_pipeline(folder: str | Path) -> Pipeline:
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"{folder} does not exist: xhat reads local folders, such as hf download NAME --local-dir FOLDER writes")
    if not (path / "model_index.json").is_file():
        raise RunError(f"{folder} is no diffusers pipeline: it has no model_index.json; write it with save_pretrained")
    index = _read_json(path / "model_index.json")
    parts = {name: value[-1] for name, value in index.items() if isinstance(value, list) and value and value[-1] is not None}
    if parts.get("unet") != "UNet2DModel" or parts.keys() != {"unet", "scheduler"}:
        made_of = ", ".join(f"{name} ({kind})" for name, kind in parts.items()) or "nothing"
        raise RunError(f"{folder} is made of {made_of}: xhat reads pipelines of a unet (UNet2DModel) and a scheduler")
    unet, config = _read_json(path / "unet" / "config.json"), _read_json(path / "scheduler" / "scheduler_config.json")
    try:
        scheduler = build_scheduler(config)
        schedule = Discrete.from_diffusers(scheduler)
        prediction_type = scheduler.config.get("prediction_type")
        target = known("prediction_type", prediction_type, TARGETS)
        # samplers without noise of their own have no variance_type; a network of C outputs then has the posterior's
        name, variance = known("variance_type", scheduler.config.get("variance_type") or "fixed_small", VARIANCES)
        if not isinstance(reach := scheduler.config.get("clip_sample_range", 1.0), int | float):
            raise RunError(f"clip_sample_range must be a number, got {reach!r}")
    except Exception as error:  # as above
        raise RunError(f"{path / 'scheduler'}: {first_line(error)}") from None
    channels, outputs = unet.get("in_channels", 3), unet.get("out_channels", 3)
    if outputs != channels * variance.outputs:
        raise RunError(
            f"{folder}: unet maps {channels} to {outputs} channels, but the scheduler's variance is {name}, which needs "
            f"{variance.outputs} outputs per image channel: correct variance_type in scheduler/scheduler_config.json"
        )
    return Pipeline(_plain(unet), _plain(config), prediction_type, target, name, variance, schedule)


def _read_network(folder: str | Path, pipeline: Pipeline, classes: int | None) -> DiffusersUNet:
    place = Path(folder) / "unet"
    if not any(place.glob("*.safetensors")) and not any(place.glob("*.bin")):
        raise RunError(f"{place} has no weights (.safetensors): copy the checkpoint whole")
    with quiet():  # by diffusers' own reader, which knows the names of older checkpoints
        unet = read_model(place, import_diffusers().UNet2DModel, {"use_safetensors": True, "local_files_only": True})
    try:
        return DiffusersUNet(unet, pipeline.target, classes)
    except ValueError as error:
        raise RunError(f"{folder}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, UnicodeDecodeError):
        raise RunError(f"{path} is missing or damaged: copy the checkpoint anew") from None


def _plain(config: dict[str, Any]) -> str:
    """As JSON, without what is not of the model: versions, and the place where it was saved."""
    return json.dumps({k: v for k, v in config.items() if k == "_class_name" or not k.startswith("_")})
