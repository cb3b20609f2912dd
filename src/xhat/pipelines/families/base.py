"""What a family of diffusers models is: how one is called, and what its channels are."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xhat.diffusion.calling import unwrapped
from xhat.errors import RunError
from xhat.pipelines.schedulers import Conventions

PRECISE = ("timestep", "guidance", "img_ids", "txt_ids")
"""What a model is given in float32 whatever its weights are: bf16 has no 499."""


class Family(nn.Module):
    """A model of diffusers as a network: net(z (B, C, H, W), time (B,), **conditions) -> (B, C or 2C, H, W).

    A family is a file: a subclass that names its models, and whose `forward` has their conditions as keywords, each a tensor
    with one row a sample.

    Args:
        model: of diffusers, maybe with adapters of PEFT on it; it is used as it is, and not changed.
        of: what its scheduler says of it.

    Raises:
        ValueError: its channels are not those of a denoiser.
    """

    models: ClassVar[tuple[str, ...]] = ()
    adapted: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the layers that a LoRA is put on: the attention's, as the official scripts have it."""

    def __init__(self, model: nn.Module, of: Conventions) -> None:
        super().__init__()
        self.model, self.target, self.time_input = model, of.target, of.time_input
        self.config: Any = unwrapped(model).config
        self.name = type(unwrapped(model)).__name__
        self.channels, returned = self.channels_of(self.config)
        self.outputs = self.channels * of.variance.outputs
        self.returns_more = returned > self.outputs
        if returned not in (self.channels, 2 * self.channels):
            raise ValueError(
                f"this {self.name} maps {self.channels} to {returned} channels: a denoiser maps C to C, or to 2C with a "
                "learned variance"
            )
        if returned < self.outputs:
            raise ValueError(
                f"this {self.name} maps {self.channels} to {returned} channels, but its scheduler's variance is learned, which "
                "needs 2 outputs per channel: give a scheduler with another variance_type"
            )

    @classmethod
    def channels_of(cls, config: Any) -> tuple[int, int]:
        """Channels of the latents, and those that the model returns."""
        return int(config.in_channels), int(config.out_channels or config.in_channels)

    @classmethod
    def texts(cls, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """Conditions of prompts by the pipeline's own text encoders, a row each.

        Raises:
            RunError: it is not told prompts.
        """
        raise RunError(f"a {type(pipeline).__name__} is not told prompts: leave them out")

    @classmethod
    def no_text(cls, pipeline: Any) -> dict[str, Tensor]:
        """Conditions of one row that stand for no prompt in guidance, as the pipeline's own sampling has it."""
        return cls.texts(pipeline, [""])

    @classmethod
    def sizes(cls, model: Any, rows: int, height: int, width: int) -> dict[str, Tensor]:
        """Conditions beside the prompts that a model of diffusers has, of images of this height and width in pixels."""
        return {}

    @classmethod
    def tokens(cls, config: Any, height: int, width: int) -> int:
        """How many patches latents are cut into."""
        patch = int(config.get("patch_size") or 1)
        return (height // patch) * (width // patch)

    def predict(self, z: Tensor, **given: Any) -> Tensor:
        """The model's prediction (B, C or 2C, H, W), as far as the denoiser reads it.

        Args:
            z: noisy latents (B, C, H, W).
            **given: what else the model is given, by its own names.

        Raises:
            ValueError: z has other channels than the model.
        """
        if z.shape[1] != self.channels:
            raise ValueError(
                f"this {self.name} takes {self.channels} channels, the data have {z.shape[1]}: give it what it was trained on, "
                "such as latents that its own autoencoder made of images"
            )
        return self.returned(z, **given)[:, : self.outputs]

    def returned(self, z: Tensor, **given: Any) -> Tensor:
        """All that the model returns for latents, (B, channels, H, W)."""
        out: Tensor = call(self.model, hidden_states=z, **given)[0]
        return out


def text_device(pipeline: Any) -> torch.device:
    """Where a pipeline's text encoders are, whatever else of it has moved."""
    encoders = (part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part is not None)
    return next((part.device for part in encoders), torch.device("cpu"))


def call(model: nn.Module, **given: Any) -> tuple[Any, ...]:
    """What a model of diffusers returns, called by name in its own precision; what is None is left out."""
    dtype = unwrapped(model).dtype
    own = {name: _in(dtype, name, value) for name, value in given.items() if value is not None}
    out: tuple[Any, ...] = model(**own, return_dict=False)
    return out


def _in(dtype: Any, name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in(dtype, key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_in(dtype, name, inner) for inner in value)
    wide = isinstance(value, Tensor) and value.is_floating_point() and name not in PRECISE
    return value.to(dtype) if wide else value
