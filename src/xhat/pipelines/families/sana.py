"""SanaTransformer2DModel: Sana (Xie et al. 2024), flow matching on the latents of a deep autoencoder."""

from torch import Tensor

from xhat.pipelines.families.base import Family


class Sana(Family):
    """A SanaTransformer2DModel.

    Conditions: text states `encoder_hidden_states` (B, L, D) and which of them count, `encoder_attention_mask` (B, L); of
    models distilled from guidance the scale `guidance` (B,) that it is told.
    """

    models = ("SanaTransformer2DModel",)

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        text = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        return self.predict(z, timestep=timestep * self.config.timestep_scale, guidance=guidance, **text)
