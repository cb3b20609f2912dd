"""A pretrained pipeline: its denoiser, what its own parts make of images and prompts, and back to where it came from."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from xhat.diffusion.calling import unwrapped
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError
from xhat.networks.autoencoders import decoded, moments, shrinks
from xhat.pipelines.families import family_of
from xhat.pipelines.from_diffusers import Size, from_diffusers
from xhat.pipelines.lora import add_lora, ready_adapter, save_lora
from xhat.pipelines.reading import read_pipeline
from xhat.tensors import device_of

PARTS = ("transformer", "unet")
"""What pipelines call the model that predicts."""
TEXT = ("tokenizer", "text_encoder")
"""How the parts begin that they need for prompts."""
SPARE = "_3"
"""What T5 is called in Stable Diffusion 3, which does without."""


def pretrained(pipeline: Any, lora: Any = None, *, size: Size | None = None, dtype: torch.dtype | None = None) -> "Pretrained":
    """A pretrained pipeline of diffusers, ready to be trained on the loss you mean.

    All its parts but the model that predicts are frozen; with `lora` that one is, too, and learns through an adapter of PEFT.

    Args:
        pipeline: a folder that `save_pretrained` wrote, or a pipeline of diffusers; that is used as it is, not copied.
        lora: None to train the model itself; the rank of an adapter on the layers that the official scripts choose, with
            alpha equal to it; or a peft.LoraConfig. A pipeline with an adapter on it goes on with that: leave `lora` out.
        size: side of the latents, or (height, width), for schedulers whose shift depends on it, and for prompts without images;
            by default the pipeline's own.
        dtype: of the weights of a folder in memory; None is float32. Adapters are always float32.

    Raises:
        RunError: something else than a pipeline, with the way out; a model of no known family; no layer for the adapter.
    """
    if isinstance(pipeline, str | Path):
        pipeline = read_pipeline(pipeline, dtype)
    part = next((name for name in PARTS if isinstance(getattr(pipeline, name, None), nn.Module)), None)
    if part is None:
        raise RunError(f"a {type(pipeline).__name__} has no {' or '.join(PARTS)}: give a pipeline of diffusers, or its folder")
    model = getattr(pipeline, part)
    family = family_of(model)
    for other in pipeline.components.values():
        if isinstance(other, nn.Module) and other is not model:
            other.requires_grad_(False).eval()
    if lora is not None:
        model = add_lora(model, lora, family.adapted)
    else:
        ready_adapter(model)
    config: Any = unwrapped(model).config
    found_size = size or config.get("sample_size") or getattr(pipeline, "default_sample_size", None)
    sides = tuple(found_size) if isinstance(found_size, list) else found_size
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*also predicts a variance, which is not read")  # its pipeline drops it, too
        denoiser = from_diffusers(model, pipeline.scheduler, size=sides, controlnet=getattr(pipeline, "controlnet", None))
    found = Pretrained(pipeline, part, model, denoiser, sides)
    denoiser.decode = found.decode
    if found.tells:
        denoiser.null = {name: value[0] for name, value in found.without_prompt().items()}
    return found


@dataclass(frozen=True)
class Pretrained:
    """A pretrained pipeline.

    Attributes:
        pipeline: of diffusers.
        part: its name of the model that predicts, unet or transformer.
        model: that model, with the adapter if there is one.
        denoiser: the model by its scheduler's conventions; it guides by its own `null`.
        size: side of the latents, or (height, width); None where nothing says it.
    """

    pipeline: Any
    part: str
    model: Any
    denoiser: Denoiser
    size: Size | None

    def __repr__(self) -> str:
        return f"Pretrained({type(self.pipeline).__name__}, {self.part}, latents of {self.size})"

    @property
    def null(self) -> Mapping[str, Any] | None:
        """What stands for no prompt in guidance, a row of each condition; None of a model that is told none."""
        return self.denoiser.null

    @property
    def tells(self) -> bool:
        """Whether the pipeline has what it takes to be told prompts, or classes."""
        return bool(getattr(self.pipeline, "labels", None)) or self._lost_text is None

    def encode(
        self, images: Tensor, prompts: Sequence[str] | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(x0, cond) for an objective: `latents` of images, and `told` of prompts.

        Args:
            images: (B, C, H, W) in [-1, 1].
            prompts: one for each image; None for a model that is told none.
            generator: draws the latents from their distribution; by default they are its mean.
        """
        if prompts is not None and len(prompts) != len(images):
            raise RunError(f"{len(prompts)} prompts for {len(images)} images: give one for each")
        height, width = images.shape[2:]
        return self.latents(images, generator=generator), self.told(prompts, rows=len(images), pixels=(height, width))

    @torch.no_grad()
    def latents(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents (B, c, h, w) of images (B, C, H, W) in [-1, 1], float32, in the model's scale; of a pipeline without an
        autoencoder the images themselves."""
        vae = getattr(self.pipeline, "vae", None)
        if vae is None:
            return images
        mean, std = (x.to(device_of(self.denoiser.net)) for x in moments(vae, images.to(vae.device)))
        if (of := self.size) is not None and getattr(self.pipeline.scheduler.config, "use_dynamic_shifting", False):
            sides = (of, of) if isinstance(of, int) else tuple(of)
            if tuple(mean.shape[2:]) != sides:
                warnings.warn(
                    f"latents of {tuple(mean.shape[2:])}, but the schedule's shift is that of {sides}: give "
                    f"xhat.pretrained(..., size={tuple(mean.shape[2:])})",
                    stacklevel=3,
                )
        if generator is None:
            return mean
        return torch.addcmul(mean, std, torch.randn(mean.shape, generator=generator, device=generator.device).to(mean))

    def told(
        self, prompts: Sequence[str] | None, *, rows: int | None = None, pixels: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Conditions of prompts, a row each, as the pipeline's own text encoders and its training have them.

        Args:
            prompts: names of classes for a model of classes; None where the model is told none.
            rows: how many, where there are no prompts.
            pixels: height and width of the images, of which some models are told; by default the pipeline's own.

        Raises:
            RunError: a model that is told prompts is given none, or the pipeline has no tokenizer or text encoder.
        """
        if prompts is None and self.tells:
            raise RunError(f"a {type(self.pipeline).__name__} is told prompts: give one for each sample, '' for none")
        cond = {} if prompts is None else self.texts(prompts)
        return cond | self.sizes(rows or 1 if prompts is None else len(prompts), pixels)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What `told` says of the prompts alone."""
        self._require_text()
        return self._there(family_of(self.model).texts(self.pipeline, list(prompts)))

    def sizes(self, rows: int, pixels: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """What `told` says of the images' size."""
        return self._there(family_of(self.model).sizes(unwrapped(self.model), rows, *(pixels or self.pixels)))

    @torch.no_grad()
    def without_prompt(self) -> dict[str, Tensor]:
        """Conditions (1, ...) that stand for no prompt."""
        return self._there(family_of(self.model).no_text(self.pipeline))

    def _there(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Conditions where the model is: training moves that alone."""
        return {name: value.to(device_of(self.denoiser.net)) for name, value in cond.items()}

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the pipeline makes; (0, 0) where nothing says it."""
        sides = self.size if isinstance(self.size, tuple) else (self.size or 0, self.size or 0)
        factor = self._shrinks
        return sides[0] * factor, sides[1] * factor

    def latent_of(self, pixels: tuple[int, int]) -> tuple[int, ...]:
        """(c, h, w) of images of this height and width."""
        net: Any = self.denoiser.net
        return int(net.channels), pixels[0] // self._shrinks, pixels[1] // self._shrinks

    def pixels_of_latents(self, sides: Sequence[int]) -> tuple[int, int]:
        """Height and width in pixels of the images of latents (..., h, w)."""
        height, width = sides
        return height * self._shrinks, width * self._shrinks

    @property
    def _shrinks(self) -> int:
        vae = getattr(self.pipeline, "vae", None)
        return 1 if vae is None else shrinks(vae)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), about -1 to 1, float32, of latents in the model's scale, with their gradient."""
        vae = getattr(self.pipeline, "vae", None)
        if vae is None:
            return latents
        if vae.device != latents.device:
            vae.to(latents.device)  # training moves the model alone
        return decoded(vae, latents)

    def to(self, device: torch.device | str) -> Self:
        """Move all parts to a device."""
        self.pipeline.to(device)
        self.denoiser.to(device)
        return self

    def save(self, folder: str | Path, denoiser: Denoiser | None = None) -> None:
        """Write what was trained: the adapter alone, if there is one, as `pipeline.load_lora_weights(folder)` reads it; else
        the whole pipeline, as `DiffusionPipeline.from_pretrained(folder)` does.

        Args:
            folder: a new one.
            denoiser: whose weights; by default those that the model has now. The averaged ones are those of fitted.denoiser.

        Raises:
            RunError: the folder exists and holds something.
        """
        path, net = Path(folder), self.denoiser.net if denoiser is None else denoiser.net
        model: Any = net.model
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise RunError(f"{path} exists already: name another folder, or move it away")
        if getattr(model, "peft_config", None):
            save_lora(self.pipeline, self.part, model, path)
            return
        own = getattr(self.pipeline, self.part)
        try:
            setattr(self.pipeline, self.part, unwrapped(model))
            self.pipeline.save_pretrained(path)
        finally:
            setattr(self.pipeline, self.part, own)

    @property
    def _lost_text(self) -> str | None:
        """The tokenizer or text encoder that the pipeline lacks for prompts; None if it has what it takes."""
        names = [name for name in self.pipeline.components if name.startswith(TEXT)]
        there = [name for name in names if getattr(self.pipeline, name) is not None]
        spare = getattr(self.pipeline, "_optional_components", []) if there else []
        lost = [name for name in names if name not in there and name not in spare and not name.endswith(SPARE)]
        return next(iter(lost), None if there else TEXT[0])

    def _require_text(self) -> None:
        if not getattr(self.pipeline, "labels", None) and (lost := self._lost_text) is not None:
            kind = type(self.pipeline).__name__
            raise RunError(f"this {kind} has no {lost}: load it with one, or give the prompts' states as cond")

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # an average of the denoiser decodes by the same parts
