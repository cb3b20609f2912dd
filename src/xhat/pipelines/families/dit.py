"""DiTTransformer2DModel: DiT (Peebles & Xie 2023), on class labels."""

from torch import Tensor

from xhat.pipelines.families.base import Family


class DiT(Family):
    """A DiTTransformer2DModel; its "label" (B,) is 0..M - 1, or M for no class, M being its `num_embeds_ada_norm`."""

    models = ("DiTTransformer2DModel",)

    def forward(self, z: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return self.predict(z, timestep=timestep.long(), class_labels=label)
