"""Networks whose weights `torch.distributed.fsdp.fully_shard` has split over processes: whole for the time of a call."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 1 / 8
"""Of a network's weights: a block that holds more of them is taken apart again."""
HOLDERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that nobody calls."""


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


def gather_in_calls(block: nn.Module) -> None:
    """Let a part of a network have all of its weights in its own calls alone: to be called, and not to be differentiated."""
    held = list(_split_parameters(block))

    def gather(*_: Any) -> None:
        for module, name, p in held:
            module._parameters[name] = whole(p)  # type: ignore[assignment]

    def give_back(*_: Any) -> None:
        for module, name, p in held:
            module._parameters[name] = p

    block.register_forward_pre_hook(gather)
    block.register_forward_hook(give_back, always_call=True)
    block._gathers_its_own = True  # type: ignore[assignment]


def anywhere(here: bool, net: nn.Module) -> bool:
    """Whether a network is to be called: here, or on any process where its parts are gathered in each call, by all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or not any(map(_gathers, net.modules())):
        return here
    asked = torch.tensor(float(here), device=next(net.parameters()).device)
    torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
    return bool(asked)


def _gathers(module: nn.Module) -> bool:
    """Whether a part of a network gathers its own weights: by `fully_shard`, or `gather_in_calls`."""
    return hasattr(module, "set_requires_gradient_sync") or hasattr(module, "_gathers_its_own")


def _split_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    if _gathers(module):
        return
    yield from ((module, name, p) for name, p in module._parameters.items() if is_split(p) and p is not None)
    for child in module.children():
        yield from _split_parameters(child)


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """What a network holds in lists (`nn.ModuleList`, `nn.Sequential`), called one after another; inner ones first.

    One that holds more than an eighth of the weights is taken apart again, where it has lists itself. What shares weights with
    another part is none.
    """
    seen, shared = set[int](), set[int]()
    for _, p in net.named_parameters(remove_duplicate=False):
        (shared if id(p) in seen else seen).add(id(p))
    most = LARGE * sum(p.numel() for p in net.parameters())

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            own = list(child.parameters())
            called = isinstance(module, nn.ModuleList | nn.Sequential) and not isinstance(child, HOLDERS)
            is_block = called and bool(own) and shared.isdisjoint(map(id, own))
            if not is_block or sum(p.numel() for p in own) > most:
                yield from below(child)
            if is_block:
                yield child

    return list(below(net))


def split(module: nn.Module, apart: Collection[nn.Parameter], device: torch.device, blocks: Collection[nn.Module] = ()) -> None:
    """Split the weights of a module over all processes, in place, by FSDP2, and move it to this process's device.

    Every process starts from the weights of the first one. What no block holds is gathered for the whole of a step.

    Args:
        module: whose own call opens each step.
        apart: parameters that every process keeps whole; whoever trains them adds up their gradients.
        device: of this process.
        blocks: parts, inner ones first, that have all of their weights in their own calls alone, and again where these are
            differentiated: the device never holds the whole.
    """
    from torch.distributed.fsdp import fully_shard

    started = set[int]()
    for each in (*blocks, module):
        for x in (*each.parameters(), *each.buffers()):
            if id(x) not in started and not is_split(x):
                x.data = x.data.to(device)
                torch.distributed.broadcast(x.data, 0)
                started.add(id(x))
        fully_shard(each, ignored_params=set(apart), reshard_after_forward=each is not module)
    if blocks:  # the first part that is called would take itself for the whole: the objective draws before its first step
        module._get_fsdp_state()._lazy_init()  # type: ignore[operator]
