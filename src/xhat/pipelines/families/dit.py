"""DiTTransformer2DModel: DiT (Peebles & Xie 2023), on class labels."""

from typing import Any

import torch
from torch import Tensor

from xhat.pipelines.families.base import Family


class DiT(Family):
    """A DiTTransformer2DModel; its "label" (B,) is 0..M - 1, or M for no class, M being its `num_embeds_ada_norm`."""

    models = ("DiTTransformer2DModel",)

    @classmethod
    def texts(cls, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """Prompts are names of classes."""
        return {"label": torch.tensor(pipeline.get_label_ids(prompts))}

    @classmethod
    def no_text(cls, pipeline: Any) -> dict[str, Tensor]:
        return {"label": torch.tensor([pipeline.transformer.config.num_embeds_ada_norm])}

    def forward(self, z: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return self.predict(z, timestep=timestep.long(), class_labels=label)
