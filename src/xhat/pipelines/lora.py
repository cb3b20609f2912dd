"""Low-rank adapters (Hu et al. 2021) by PEFT: a few layers of a frozen model get a trainable product of two thin matrices."""

from pathlib import Path
from typing import Any

import torch

from xhat.diffusion.calling import unwrapped
from xhat.errors import RunError, first_line
from xhat.networks.adapters import adapted_layers, inner_of
from xhat.pipelines.schedulers import import_peft

NAME = "default"
"""PEFT's name of an adapter that nobody has named."""


def add_lora(model: Any, lora: Any, targets: tuple[str, ...]) -> Any:
    """The model with an adapter; its own weights are frozen, and the adapter's are float32 whatever they are.

    W x becomes W x + (alpha / r) B A x, with A normal and B zero at first, so that nothing has changed yet.

    Args:
        model: of diffusers; it gets the adapter in place.
        lora: the rank r, with alpha = r; or a peft.LoraConfig.
        targets: ends of the names of the layers, where `lora` does not say.

    Raises:
        RunError: no such rank, no layer of these names, or the model has an adapter.
    """
    peft = import_peft()
    if isinstance(lora, int) and not isinstance(lora, bool):
        if lora < 1:
            raise RunError(f"lora is the rank of the adapter, 1 or more, got {lora}")
        lora = peft.LoraConfig(r=lora, lora_alpha=lora, init_lora_weights="gaussian", target_modules=list(targets))
    if not isinstance(lora, peft.LoraConfig):
        raise RunError(f"lora is a rank such as 16, or a peft.LoraConfig, got a {type(lora).__name__}")
    if lora.target_modules is None:
        lora.target_modules = set(targets)
    if getattr(model, "peft_config", None):
        raise RunError(f"this {type(unwrapped(model)).__name__} has an adapter already: leave lora out to train that")
    before = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    try:
        if hasattr(model, "add_adapter"):
            model.add_adapter(lora, adapter_name=NAME)
        else:
            model = peft.get_peft_model(model, lora)
    except ValueError as error:
        for p, learned in before:
            p.requires_grad_(learned)
        if hasattr(model, "_hf_peft_config_loaded"):
            model._hf_peft_config_loaded = False
        names = ", ".join(sorted(lora.target_modules)) if isinstance(lora.target_modules, set | list) else lora.target_modules
        raise RunError(
            f"the adapter fits no layer of this {type(unwrapped(model)).__name__} ({names}): name its layers in "
            f"peft.LoraConfig(target_modules=...) ({first_line(error)[:80]})"
        ) from None
    _precise(model)
    return model


def ready_adapter(model: Any) -> None:
    """Let the adapter learn that a model came with, and nothing else; a model without one learns as it is.

    Raises:
        RunError: it has several.
    """
    if not getattr(model, "peft_config", None):
        return
    _name_of(model)
    given = {id(p) for layer in adapted_layers(model) for p in inner_of(layer).parameters()}
    own = {id(p) for layer in adapted_layers(model) for p in layer.parameters()} - given
    for p in model.parameters():
        p.requires_grad_(id(p) in own)
    _precise(model)


def _precise(model: Any) -> None:
    """What learns, in float32: half precision loses small steps."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def _name_of(model: Any) -> str:
    names = list(model.peft_config)
    if len(names) != 1:
        raise RunError(f"the model has the adapters {', '.join(names)}: delete all but the one that is to learn")
    return str(names[0])


def save_lora(pipeline: Any, part: str, model: Any, folder: Path) -> None:
    """Write the adapter alone, as its own pipeline reads it: `pipeline.load_lora_weights(folder)`.

    Models whose pipelines have no such method get PEFT's own files: `PeftModel.from_pretrained(pipeline.transformer, folder)`.

    Args:
        pipeline: that the model is of.
        part: its name there, unet or transformer.
        model: with the adapter.
        folder: for the file.
    """
    peft = import_peft()
    model = getattr(model, "_orig_mod", model)  # compiled, its names would be others
    name = _name_of(model)
    if hasattr(pipeline, "save_lora_weights") and not isinstance(model, peft.PeftModel):
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in model.peft_config[name].to_dict().items()}
        layers = {f"{part}_lora_layers": peft.get_peft_model_state_dict(model, adapter_name=name)}
        pipeline.save_lora_weights(folder, **layers, **{f"{part}_lora_adapter_metadata": config})
    elif isinstance(model, peft.PeftModel):
        model.save_pretrained(folder)
    else:
        model.save_lora_adapter(folder, adapter_name=name)
