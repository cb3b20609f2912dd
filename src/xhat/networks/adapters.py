"""Adapters of PEFT on a network: whether there are any, and the network without them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

INNER = ("base_layer", "original_module")
"""What PEFT calls a layer under an adapter, and one under a copy that learns in its place."""


def adapted_layers(module: nn.Module) -> list[Any]:
    """The layers that adapters of PEFT are on."""
    wrapped = (part for part in module.modules() if any(hasattr(part, name) for name in INNER))
    return [part for part in wrapped if callable(getattr(part, "enable_adapters", None))]


def inner_of(layer: Any) -> nn.Module:
    """The layer under an adapter."""
    found: nn.Module = next(getattr(layer, name) for name in INNER if hasattr(layer, name))
    return found


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """The network as it was before its adapters: the same weights, no second copy. After it they are as they were.

    Raises:
        ValueError: there are none, so that it would be the network itself; or something else of it learns, too.
    """
    layers = adapted_layers(module)
    if not layers:
        raise ValueError(
            "the network has no adapters to switch off: train it with one (lora=16), or give a frozen copy of it as reference"
        )
    covered = {id(p) for layer in layers for p in layer.parameters()}
    if other := next((name for name, p in module.named_parameters() if p.requires_grad and id(p) not in covered), None):
        raise ValueError(
            f"{other} learns and is no adapter, so that without adapters the network is not what it was: give a frozen copy as "
            "reference"
        )
    off = [layer for layer in layers if not layer.disable_adapters]
    learns = [(p, p.requires_grad) for layer in off for p in layer.parameters()]
    try:
        for layer in off:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in off:
            layer.enable_adapters(True)
        for p, learned in learns:  # switching off and on decides anew what learns
            p.requires_grad_(learned)
