"""Adapters of PEFT on a network: whether there are any, and the network without them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def adapted_layers(module: nn.Module) -> list[Any]:
    """The layers that adapters of PEFT are on."""
    return [
        part for part in module.modules() if hasattr(part, "base_layer") and callable(getattr(part, "enable_adapters", None))
    ]


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """The network as it was before its adapters: the same weights, no second copy. After it they are as they were.

    Raises:
        ValueError: there are none, so that it would be the network itself.
    """
    layers = adapted_layers(module)
    if not layers:
        raise ValueError(
            "the network has no adapters to switch off: train it with one (lora=16), or give a frozen copy of it as reference"
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
