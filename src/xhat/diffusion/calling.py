"""How a network is called, and what is said of one that is built for other callers."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside of torch.compile's, DDP's and PEFT's wrappers, whose own attributes say what it reads and predicts."""
    if isinstance(net, WRAPPERS):
        return unwrapped(net.module)
    inside = getattr(net, "_orig_mod", None)
    if inside is None and callable(of_peft := getattr(net, "get_base_model", None)):
        inside = of_peft()
    return net if not isinstance(inside, nn.Module) or inside is net else unwrapped(inside)


def is_diffusers(net: nn.Module) -> bool:
    """Whether it is a model of the diffusers library, which takes timesteps and returns its output in a dataclass."""
    kinds = type(unwrapped(net)).__mro__
    return any(kind.__name__ == "ModelMixin" and kind.__module__.startswith("diffusers.") for kind in kinds)


def call_network(net: nn.Module, z: Tensor, time: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """net(z, time, **cond), a tensor; that of a diffusers model is taken out of its dataclass.

    Raises:
        ValueError: the network takes other arguments, cannot take a float32 time, or returns something else than a tensor; with
            the way out.
    """
    try:
        out = net(z, time, **cond)
    except TypeError as error:
        if not (why := _refusal(net, z, time, cond)):
            raise  # of the network's own making
        raise ValueError(why) from error
    except RuntimeError as error:
        if time.dtype == z.dtype or "dtype" not in str(error):
            raise
        raise ValueError(
            f"{_name(net)}: {error}; the time is {time.dtype} beside images in {z.dtype}, which cannot tell timesteps apart: "
            "embed it as it is, then cast the embedding, for example features.to(self.mlp[0].weight.dtype)"
        ) from error
    if not isinstance(out, Tensor) and is_diffusers(net):
        out = out[0]  # of its dataclass as of the tuple of return_dict=False
    if not isinstance(out, Tensor):
        raise ValueError(
            f"{_name(net)} returned {_described(out)} instead of a tensor shaped like z: wrap it in a module whose "
            f"forward(z, t, **cond) returns the prediction alone, for example self.net(z, t, **cond){_way_in(out)}"
        )
    return out


_ANY = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _refusal(net: nn.Module, z: Tensor, time: Tensor, cond: Mapping[str, Any]) -> str | None:
    signature = inspect.signature(unwrapped(net).forward)
    try:
        signature.bind(z, time, **cond)
    except TypeError as error:
        call = ", ".join(["z", "t", *(f"{name}={name}" for name in cond)])
        needs = [p.name for p in signature.parameters.values() if p.default is p.empty and p.kind not in _ANY][2:]
        lacks = [name for name in needs if name not in cond]
        told = f"give {', '.join(lacks)} in cond, or " if lacks else ""
        return (
            f"{_name(net)} cannot be called as net({call}): {error}; it takes ({', '.join(signature.parameters)}): {told}wrap "
            "it in a module whose forward(z, t, **cond) hands them on by its own names"
        )
    return None


def _name(net: nn.Module) -> str:
    return type(unwrapped(net)).__name__


def _described(out: object) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of {len(out)}"
    return "nothing" if out is None else f"a {type(out).__name__}"


def _way_in(out: object) -> str:
    """The expression that takes the tensor out of what was returned, as far as one can tell."""
    if isinstance(out, tuple | list):
        return "[0]"
    if isinstance(out, Mapping) and not hasattr(out, "sample"):
        keys = [key for key, value in out.items() if isinstance(value, Tensor)]
        return f"[{keys[0]!r}]" if keys else "[...]"
    known = [name for name, value in getattr(out, "__dict__", {}).items() if isinstance(value, torch.Tensor)]
    return f".{known[0]}" if known else ".sample"
