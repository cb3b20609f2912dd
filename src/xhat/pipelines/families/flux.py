"""FluxTransformer2DModel: FLUX.1, whose transformer takes latents as a row of 2 x 2 patches."""

from typing import Any

import torch
from torch import Tensor

from xhat.pipelines.families.base import Family, text_device
from xhat.pipelines.families.sd3 import SD3


class Flux(Family):
    """A FluxTransformer2DModel; the positions of patches and words are made here.

    Conditions: text states `encoder_hidden_states` (B, L, D), `pooled_projections` (B, D), and of a model distilled from
    guidance the scale `guidance` (B,) that it is told.
    """

    models = ("FluxTransformer2DModel",)
    adapted = (*SD3.adapted, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
    told = 3.5
    """The guidance that FLUX.1's pipeline and training scripts tell a distilled model."""

    @classmethod
    def texts(cls, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, pooled, _ = pipeline.encode_prompt(prompts, None, device=text_device(pipeline))
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    @classmethod
    def sizes(cls, model: Any, rows: int, height: int, width: int) -> dict[str, Tensor]:
        return {"guidance": torch.full((rows,), cls.told)} if model.config.guidance_embeds else {}

    @classmethod
    def channels_of(cls, config: Any) -> tuple[int, int]:
        return config.in_channels // 4, (config.out_channels or config.in_channels) // 4

    @classmethod
    def tokens(cls, config: Any, height: int, width: int) -> int:
        return (height // 2) * (width // 2)

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        if guidance is None and self.config.guidance_embeds:
            raise ValueError(
                f"this {self.name} was distilled from guidance and must be told its scale: add the condition guidance (B,), "
                "for example torch.full((B,), 3.5)"
            )
        if guidance is not None and not self.config.guidance_embeds:
            raise ValueError(f"this {self.name} is told no guidance (guidance_embeds is false): leave that condition out")
        text = {"encoder_hidden_states": encoder_hidden_states, "pooled_projections": pooled_projections}
        return self.predict(z, timestep=timestep / 1000, guidance=guidance, **text)

    def returned(self, z: Tensor, **given: Any) -> Tensor:
        height, width = z.shape[2:]
        if height % 2 or width % 2:
            raise ValueError(f"this {self.name} takes latents of even sides, got {height} x {width}")
        words = z.new_zeros(given["encoder_hidden_states"].shape[1], 3)
        row = super().returned(packed(z), img_ids=positions(z), txt_ids=words, **given)
        return unpacked(row, height, width)


def packed(z: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 · W/2, 4C): a row of patches."""
    return torch.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)


def unpacked(row: Tensor, height: int, width: int) -> Tensor:
    """The latents of `packed` again."""
    return torch.pixel_shuffle(row.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def positions(z: Tensor) -> Tensor:
    """(H/2 · W/2, 3) of latents (B, C, H, W): zero, row and column of each patch."""
    down, across = torch.arange(z.shape[2] // 2), torch.arange(z.shape[3] // 2)
    return torch.cartesian_prod(torch.zeros(1, dtype=torch.long), down, across).to(z)
