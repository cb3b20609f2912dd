"""UNet2DConditionModel: Stable Diffusion 1 and 2, SDXL, and what is derived from them."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from xhat.pipelines.families.base import Family, call, text_device


class UNet2DCondition(Family):
    """A UNet2DConditionModel.

    Conditions: text states `encoder_hidden_states` (B, L, D); of SDXL the pooled `text_embeds` (B, D) and `time_ids` (B, 6),
    (original height, width, crop top, left, height, width) in pixels; `image_embeds` of unCLIP; `timestep_cond` of models
    distilled from guidance; the residuals of a ControlNet, a tuple of a tensor for each block.
    """

    models: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)

    @classmethod
    def texts(cls, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, _, *pooled = pipeline.encode_prompt(
            prompts, device=text_device(pipeline), num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, **({"text_embeds": pooled[0]} if pooled else {})}

    @classmethod
    def no_text(cls, pipeline: Any) -> dict[str, Tensor]:
        found = super().no_text(pipeline)
        zero = pipeline.config.get("force_zeros_for_empty_prompt", False)
        return {name: torch.zeros_like(x) for name, x in found.items()} if zero else found

    @classmethod
    def sizes(cls, model: Any, rows: int, height: int, width: int) -> dict[str, Tensor]:
        """SDXL's six: the whole picture, nothing cut off."""
        if model.config.get("addition_embed_type") != "text_time":
            return {}
        return {"time_ids": torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(rows, -1)}

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        image_embeds: Tensor | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> Tensor:
        return self.predict(
            z,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added(text_embeds=text_embeds, time_ids=time_ids, image_embeds=image_embeds),
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
        )

    def returned(self, z: Tensor, **given: Any) -> Tensor:
        out: Tensor = call(self.model, sample=z, **given)[0]
        return out


def added(**given: Tensor | None) -> dict[str, Tensor] | None:
    """The conditions that diffusers takes in one dictionary."""
    return {name: value for name, value in given.items() if value is not None} or None
