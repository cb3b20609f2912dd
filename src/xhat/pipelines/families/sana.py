"""SanaTransformer2DModel: Sana (Xie et al. 2024), flow matching on the latents of a deep autoencoder."""

import inspect
from typing import Any

from torch import Tensor

from xhat.pipelines.families.base import Family, text_device


class Sana(Family):
    """A SanaTransformer2DModel.

    Conditions: text states `encoder_hidden_states` (B, L, D) and which of them count, `encoder_attention_mask` (B, L).
    """

    models = ("SanaTransformer2DModel",)

    @classmethod
    def texts(cls, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """With the instruction to the language model that the pipeline puts before each prompt by default."""
        before = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        return cls._encoded(pipeline, prompts, before)

    @classmethod
    def no_text(cls, pipeline: Any) -> dict[str, Tensor]:
        return cls._encoded(pipeline, [""], None)

    @staticmethod
    def _encoded(pipeline: Any, prompts: list[str], before: list[str] | None) -> dict[str, Tensor]:
        states, mask, _, _ = pipeline.encode_prompt(
            prompts, False, device=text_device(pipeline), clean_caption=False, complex_human_instruction=before
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        text = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        return self.predict(z, timestep=timestep * self.config.timestep_scale, **text)
