"""A pipeline as the network of a config: `--init FOLDER` names it, and the run's own weights are what has learned."""

import ast
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from xhat.errors import RunError
from xhat.files.atomic import digest_of
from xhat.networks.autoencoders import shrinks_of
from xhat.pipelines.pretrained import PARTS, Pretrained, pretrained
from xhat.pipelines.reading import INDEX, require_pipeline
from xhat.pipelines.schedulers import parse
from xhat.registry import NETWORKS

OWN = "network"
"""What schedule, target and variance of a config are called where the network brings its own."""
DEFAULT_SIDE = 128
"""Of latents, where a transformer's config does not say: FLUX.1's."""


@NETWORKS.register
def pipeline(folder: str, lora: int | None = None, size: int | tuple[int, int] | None = None) -> nn.Module:
    """The model of a pipeline of diffusers that predicts, with the pipeline around it.

    Args:
        folder: of the pipeline.
        lora: rank of an adapter on it; None trains the model itself.
        size: of the latents.

    Raises:
        RunError: as for `xhat.pretrained`.
    """
    found = pretrained(folder, lora, size=size)
    net: Any = found.denoiser.net
    net.home = (found,)  # in a tuple the pipeline is no part of the network
    return net  # type: ignore[no-any-return]


def home_of(net: Any) -> Pretrained | None:
    """The pipeline that a network of a config came with."""
    found: Pretrained | None = getattr(net, "home", (None,))[0]
    return found


def values_of_pipeline(folder: Path) -> dict[str, Any]:
    """The values of a config that goes on from a pipeline: its own model and conventions, rates and sizes that fit adapters."""
    require_pipeline(folder)
    scheduler = _config(folder / "scheduler" / "scheduler_config.json")
    flow = "shift" in scheduler or scheduler.get("prediction_type") == "flow_prediction"
    return {
        "network": f"pipeline({str(folder.resolve())!r})",  # the run is found from anywhere
        "schedule": OWN,
        "target": OWN,
        "variance": OWN,
        "label_dropout": 0.0,
        "batch_size": 4,
        "compile": "off",
        "optimizer": {"lr": 1e-4, "warmup_steps": 0},  # an adapter starts from nothing, and short trainings are usual
        "sampling": {"sampler": "euler" if flow else "ddim", "steps": 30, "guidance": 5.0},
        "terms": {"denoise": {"loss": "denoising(space=target)"}},
    }


def folder_of(network: str) -> Path | None:
    """The folder that a config's network names; None of a network that is no pipeline."""
    try:
        tree = ast.parse(network, mode="eval").body
    except SyntaxError:
        return None
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == pipeline.__name__ and tree.args):
        return None
    first = tree.args[0]
    return Path(first.value) if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def pixels_of(folder: Path) -> tuple[int, int]:
    """Height and width of the images that a pipeline makes, from its configs alone.

    Raises:
        RunError: no pipeline.
    """
    require_pipeline(folder)
    part = next((name for name in PARTS if (folder / name / "config.json").is_file()), None)
    if part is None:
        raise RunError(f"{folder} has no {' or '.join(PARTS)}: it is no pipeline that xhat can train")
    side = _config(folder / part / "config.json").get("sample_size") or DEFAULT_SIDE
    vae = folder / "vae" / "config.json"
    factor = shrinks_of(_config(vae)) if vae.is_file() else 1
    height, width = (side, side) if isinstance(side, int) else side
    return height * factor, width * factor


def picture_of(folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that a pipeline makes, from its configs alone.

    Raises:
        RunError: no pipeline.
    """
    vae = folder / "vae" / "config.json"
    return (int(_config(vae).get("out_channels", 3)) if vae.is_file() else 3, *pixels_of(folder))


def latents_of(network: str) -> str | None:
    """A checksum of the autoencoder whose latents a config's network predicts; None where it predicts what is shown."""
    folder = folder_of(network)
    files = [] if folder is None else sorted((folder / "vae").glob("*.safetensors"))
    return sha256(b"".join(map(digest_of, files))).hexdigest() if files else None


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a pipeline that is more than a UNet2DModel and its scheduler."""
    index = folder / INDEX
    if not index.is_file():
        return False
    parts = {name: value[-1] for name, value in _config(index).items() if isinstance(value, list) and value and value[-1]}
    return parts.get("unet") != "UNet2DModel" or parts.keys() != {"unet", "scheduler"}


def _config(path: Path) -> dict[str, Any]:
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, UnicodeDecodeError):
        raise RunError(f"{path} is missing or damaged: copy the pipeline anew") from None
