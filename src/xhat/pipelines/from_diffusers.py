"""A denoiser of a model of diffusers and its scheduler."""

import warnings
from typing import Any

from torch import nn

from xhat.diffusion.calling import unwrapped
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.targets import Target
from xhat.errors import RunError
from xhat.pipelines.families import family_of
from xhat.pipelines.families.controlnet import Steered
from xhat.pipelines.schedulers import conventions

Size = int | tuple[int, int]


def from_diffusers(
    model: nn.Module,
    scheduler: Any,
    target: Target | None = None,
    *,
    size: Size | None = None,
    controlnet: nn.Module | None = None,
) -> Denoiser:
    """A denoiser of a model of diffusers, read by the conventions of its scheduler.

    Args:
        model: a UNet2DModel, UNet2DConditionModel, SD3Transformer2DModel, FluxTransformer2DModel, DiTTransformer2DModel,
            PixArtTransformer2DModel or SanaTransformer2DModel; maybe compiled, or with adapters of PEFT. It is used as it is,
            in its own precision, and stays in the mode it is in.
        scheduler: that it was trained with: its table of steps or its flow shift, its prediction type and its variance.
        target: None, or what you believe the network predicts; it cannot be changed, only checked.
        size: side of the latents, or (height, width), for a scheduler whose shift depends on the resolution; by default the
            model's own sample_size.
        controlnet: a ControlNetModel that steers a UNet2DConditionModel, by the condition `controlnet_cond`.

    Returns:
        The denoiser; its conditions have the names that the model's forward has, each with one row a sample.

    Raises:
        RunError: no family knows the model, the scheduler has no counterpart here, another target, no size where one is needed.
        ValueError: the network's channels are not those of a denoiser, or its target cannot be inverted on the schedule.
    """
    kind, config = family_of(model), unwrapped(model).config
    sides = _sides(size, config)
    of = conventions(scheduler, sides and kind.tokens(config, *sides))
    if target is not None and target != of.target:
        raise RunError(
            f"{type(scheduler).__name__} says that the model predicts {of.target}, not {target}: keep target {of.target}, "
            f"which its weights were trained for, and convert the loss instead, Denoising(space={target})"
        )
    net = kind(model, of) if controlnet is None else Steered(model, of, controlnet)
    if net.returns_more:
        warnings.warn(
            f"this {net.name} also predicts a variance, which is not read: its scheduler's variance_type is not learned_range",
            stacklevel=2,
        )
    return Denoiser(net, of.schedule, of.target, variance=of.variance)


def _sides(size: Size | None, config: Any) -> tuple[int, int] | None:
    found = config.get("sample_size") if size is None else size
    if found is None:
        return None
    return (found, found) if isinstance(found, int) else (int(found[0]), int(found[1]))
