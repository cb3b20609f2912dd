"""PixArtTransformer2DModel: PixArt-alpha and PixArt-Sigma (Chen et al. 2023, 2024)."""

from typing import Any

import torch
from torch import Tensor

from xhat.diffusion.calling import unwrapped
from xhat.pipelines.families.base import Family, text_device


class PixArt(Family):
    """A PixArtTransformer2DModel.

    Conditions: text states `encoder_hidden_states` (B, L, D) and which of them count, `encoder_attention_mask` (B, L); of
    models with `use_additional_conditions` the size in pixels, `resolution` (B, 2), and `aspect_ratio` (B, 1).
    """

    models = ("PixArtTransformer2DModel",)

    @classmethod
    def texts(cls, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, mask, _, _ = pipeline.encode_prompt(prompts, False, device=text_device(pipeline), clean_caption=False)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    @classmethod
    def sizes(cls, model: Any, rows: int, height: int, width: int) -> dict[str, Tensor]:
        if not model.use_additional_conditions:  # the config may leave that to the model
            return {}
        size = torch.tensor([[height, width]], dtype=torch.float32)
        return {"resolution": size.expand(rows, -1), "aspect_ratio": torch.full((rows, 1), height / width)}

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> Tensor:
        if resolution is None and unwrapped(self.model).use_additional_conditions:
            raise ValueError(
                f"this {self.name} is told the size of the images: add resolution (B, 2), height and width in pixels, and "
                "aspect_ratio (B, 1) to cond"
            )
        size = {"resolution": resolution, "aspect_ratio": aspect_ratio}
        text = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        return self.predict(z, timestep=timestep.long(), added_cond_kwargs=size, **text)
