"""A UNet2DConditionModel that a ControlNetModel steers (Zhang et al. 2023)."""

from typing import ClassVar

from torch import Tensor, nn

from xhat.diffusion.calling import unwrapped
from xhat.pipelines.families.base import call
from xhat.pipelines.families.unet_condition import UNet2DCondition, added
from xhat.pipelines.schedulers import Conventions


class Steered(UNet2DCondition):
    """A UNet2DConditionModel with the residuals of a ControlNet, which is a part of the network: freeze what is not to learn.

    Conditions: those of the UNet, and the picture `controlnet_cond` (B, 3, height, width) in pixels, in [0, 1].

    Args:
        model: the UNet2DConditionModel.
        of: what its scheduler says of it.
        controlnet: the ControlNetModel.

    Raises:
        ValueError: no ControlNetModel, or another model.
    """

    models: ClassVar[tuple[str, ...]] = ()
    steers = UNet2DCondition.models[0]

    def __init__(self, model: nn.Module, of: Conventions, controlnet: nn.Module) -> None:
        super().__init__(model, of)
        kinds = [kind.__name__ for kind in type(unwrapped(model)).__mro__]
        if (kind := type(unwrapped(controlnet)).__name__) != "ControlNetModel" or self.steers not in kinds:
            raise ValueError(f"a ControlNetModel steers a {self.steers}: got a {kind} for a {self.name}")
        self.controlnet = controlnet

    def forward(  # type: ignore[override]
        self,
        z: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        *,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        down, mid = call(
            self.controlnet,
            sample=z,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            added_cond_kwargs=added(text_embeds=text_embeds, time_ids=time_ids),
        )
        return super().forward(
            z,
            timestep,
            encoder_hidden_states,
            text_embeds=text_embeds,
            time_ids=time_ids,
            down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=mid,
        )
