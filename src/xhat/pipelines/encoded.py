"""What a pipeline makes of images and prompts, once: latents and text states, kept on disk for the next time."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.budgets import require_memory
from xhat.errors import DamagedError, DataError
from xhat.files.atomic import digest_of
from xhat.files.cache import CACHE, cache_folder
from xhat.files.tensors import read_tensors, write_tensors
from xhat.networks.autoencoders import moments

VERSION = 1
"""Of how they are written."""
IMAGES, TEXTS = 8, 16
"""At a time."""
ENCODERS = ("vae", "text_encoder", "tokenizer")
"""Folders of a pipeline whose names begin so make latents and text states."""


class Told(NamedTuple):
    """Images and what they show, before they are encoded.

    Attributes:
        pixels: images number i, ..., j - 1 as (n, 3, H, W) in [-1, 1]; None of prompts without images.
        samples: how many.
        prompts: of each.
        mark: a fingerprint of all of it.
        name: for messages.
        side: of the images in pixels.
    """

    pixels: Callable[[int, int], Tensor] | None
    samples: int
    prompts: list[str]
    mark: str
    name: str
    side: tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Latents and text states.

    Attributes:
        mean: of the latents (N, c, h, w); None of prompts without images.
        std: of the latents, like `mean`.
        texts: name of a condition -> its values for each different prompt (U, ...).
        which: number of each sample's prompt among these, (N,).
        sizes: conditions of the images' size, one row (1, ...).
        null: what stands for no prompt, one row (...) each.
        latent: (c, h, w).
        prompts: of each sample.
        mark: fingerprint.
        name: for messages.
    """

    mean: Tensor | None
    std: Tensor | None
    texts: Mapping[str, Tensor]
    which: Tensor
    sizes: Mapping[str, Tensor]
    null: Mapping[str, Tensor]
    latent: tuple[int, ...]
    prompts: list[str]
    mark: str
    name: str


def encoded(folder: Path, told: Told, open_pipeline: Callable[[], Any], say: Callable[[str], None] | None = None) -> Encoded:
    """Latents and text states of images and prompts by the pipeline of a folder, from the cache or made and put there.

    Args:
        folder: of the pipeline.
        told: images and prompts.
        open_pipeline: gives a `Pretrained`, where the cache lacks them.
        say: is told what takes its time.

    Raises:
        DataError: the cache cannot be written.
        BudgetError: they do not fit in memory.
    """
    mark = _mark(folder, told)
    path = cache_folder() / f"{mark[:32]}.safetensors"
    names = sorted(set(told.prompts))
    number = {prompt: i for i, prompt in enumerate(names)}
    which = torch.tensor([number[prompt] for prompt in told.prompts])
    try:
        metadata, tensors = read_tensors(path)
    except (FileNotFoundError, DamagedError):
        tensors, metadata = _made(told, names, open_pipeline, say), {}
        latent = json.dumps(list(tensors["mean"].shape[1:]) if "mean" in tensors else tensors.pop("latent").tolist())
        metadata = {"latent": latent}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, metadata)
        except OSError as error:
            raise DataError(
                f"the cache {path.parent} cannot be written ({error.strerror}): name another with {CACHE}"
            ) from None
        tensors = {name: x.clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}  # as they are read
    parts: dict[str, dict[str, Tensor]] = {"text": {}, "size": {}, "null": {}}
    for name, value in tensors.items():
        kind, _, own = name.partition(".")
        if own:
            parts[kind][own] = value
    return Encoded(
        tensors.get("mean"),
        tensors.get("std"),
        parts["text"],
        which,
        parts["size"],
        parts["null"],
        tuple(json.loads(metadata["latent"])),
        told.prompts,
        mark,
        told.name,
    )


def _made(
    told: Told, names: list[str], open_pipeline: Callable[[], Any], say: Callable[[str], None] | None
) -> dict[str, Tensor]:
    p, kept = open_pipeline(), dict[str, Tensor]()
    tell = say or (lambda line: None)
    if told.pixels is not None:
        tell(f"{told.name}: encoding {told.samples:,} images of {told.side[1]}x{told.side[0]}, once")
        kept |= _latents(p, told)
    else:
        kept["latent"] = torch.tensor(p.latent_of(told.side))
    tell(f"{told.name}: encoding {len(names):,} different prompts, once")
    texts: dict[str, list[Tensor]] = {}
    for first in range(0, len(names), TEXTS):
        for name, value in p.texts(names[first : first + TEXTS]).items():
            texts.setdefault(name, []).append(value.cpu())
            if first == 0:
                size = value[0].numel() * value.element_size() * len(names)
                require_memory(size, f"{name} of {len(names):,} prompts", "take fewer prompts, or split the data")
    kept |= {f"text.{name}": torch.cat(parts) for name, parts in texts.items()}
    kept |= {f"size.{name}": value[:1].cpu().clone() for name, value in p.sizes(1, told.side).items()}
    return kept | {f"null.{name}": value.cpu().clone() for name, value in (p.null or {}).items()}


@torch.no_grad()
def _latents(p: Any, told: Told) -> dict[str, Tensor]:
    assert told.pixels is not None
    vae, means, stds = getattr(p.pipeline, "vae", None), [], []
    for first in range(0, told.samples, IMAGES):
        images = told.pixels(first, min(first + IMAGES, told.samples))
        try:
            mean, std = (images, torch.zeros_like(images)) if vae is None else moments(vae, images.to(vae.device))
        except ValueError as error:
            raise DataError(f"{told.name}: {error}: set image_size") from None
        if first == 0:
            require_memory(8 * mean[0].numel() * told.samples, f"latents of {told.samples:,} images", "lower image_size")
        means.append(mean.cpu())
        stds.append(std.cpu())
    return {"mean": torch.cat(means), "std": torch.cat(stds)}


def _mark(folder: Path, told: Told) -> str:
    """The same for the same data, size and encoders."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0].startswith(ENCODERS)
    ]
    digest = hashlib.sha256(json.dumps([VERSION, told.mark, told.side, told.pixels is None]).encode())
    for path in files:
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(digest_of(path))
    return digest.hexdigest()
