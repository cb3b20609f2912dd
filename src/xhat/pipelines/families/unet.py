"""UNet2DModel: images or latents, with class labels or without a condition."""

from typing import Any

from torch import Tensor

from xhat.pipelines.families.base import Family, call


class UNet2D(Family):
    """A UNet2DModel; "label" (B,) is a row of its own class embeddings, with no class more or less than it was trained with."""

    models = ("UNet2DModel",)

    def forward(self, z: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        return self.predict(z, timestep=timestep.long(), class_labels=label)

    def returned(self, z: Tensor, **given: Any) -> Tensor:
        out: Tensor = call(self.model, sample=z, **given)[0]
        return out
