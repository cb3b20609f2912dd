"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5 (Esser et al. 2024)."""

from typing import Any

from torch import Tensor

from xhat.pipelines.families.base import Family, text_device


class SD3(Family):
    """An SD3Transformer2DModel; conditions: text states `encoder_hidden_states` (B, L, D), `pooled_projections` (B, D)."""

    models = ("SD3Transformer2DModel",)
    adapted = (*Family.adapted, "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")

    @classmethod
    def texts(cls, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, device=text_device(pipeline), do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def forward(self, z: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor) -> Tensor:
        text = {"encoder_hidden_states": encoder_hidden_states, "pooled_projections": pooled_projections}
        return self.predict(z, timestep=timestep, **text)
