"""Networks whose weights `torch.distributed.fsdp.fully_shard` has split over processes: whole for the time of a call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_split(x: Any) -> bool:
    """Whether a tensor is a DTensor, of which each process holds a part. DTensor's module is not imported for the question."""
    return isinstance(x, Tensor) and hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """All of a tensor, on every process; they all ask. Its gradient is the sum over processes."""
    if not is_split(x):
        return x
    from torch.distributed.tensor import Partial

    found: Tensor = x.full_tensor(grad_placements=[Partial()] * x.device_mesh.ndim)  # type: ignore[attr-defined]
    return found


def part(x: Tensor) -> Tensor:
    """What this process holds of a tensor: a view, as long as nothing asks for its gradient."""
    return x.to_local() if is_split(x) else x  # type: ignore[attr-defined]


def split_like(x: Tensor, other: Tensor) -> Tensor:
    """A tensor that is the same on all processes, split as another of its shape is; they say nothing to each other."""
    if is_split(x) or not is_split(other) or x.shape != other.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(other.device), other.device_mesh, other.placements, src_data_rank=None)  # type: ignore[attr-defined]


def joined(own: Tensor, like: Tensor) -> Tensor:
    """All of a tensor that is split as another one is, from what each process holds of it."""
    if not is_split(like):
        return own
    from torch.distributed.tensor import DTensor

    how = (like.device_mesh, like.placements)  # type: ignore[attr-defined]
    return whole(DTensor.from_local(own, *how, run_check=False, shape=like.shape, stride=like.stride()))


@contextmanager
def gathered(net: nn.Module) -> Iterator[None]:
    """A network with all of its weights, as long as this lasts: for calls that do not come through what `fully_shard` wrapped.

    Gradients of the split weights are the sums over processes of what each has computed. Parts of the network that are wrapped
    by themselves gather their own.
    """
    held = list(_split_parameters(net))
    for module, name, p in held:
        module._parameters[name] = whole(p)  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, name, p in held:
            module._parameters[name] = p


def _split_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    if hasattr(module, "set_requires_gradient_sync"):  # wrapped by fully_shard
        return
    yield from ((module, name, p) for name, p in module._parameters.items() if is_split(p) and p is not None)
    for child in module.children():
        yield from _split_parameters(child)


def split(module: nn.Module, apart: list[nn.Parameter]) -> None:
    """Split the weights of a module over all processes, in place: FSDP2, gathered as a whole for each step.

    Every process starts from the weights of the first one.

    Args:
        module: whose own call opens each step.
        apart: parameters that every process keeps whole; whoever trains them adds up their gradients.
    """
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for x in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(x.data, 0)
    fully_shard(module, ignored_params=set(apart), reshard_after_forward=False)
