"""The one place where per-image numbers meet images, and modules whose tables keep their precision when a model is cast."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Generic, Self, TypeVar, overload

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

R = TypeVar("R")


class Once(Generic[R]):
    """As `functools.cached_property`, without the lock of Python before 3.12, at which torch.compile breaks its graph."""

    def __init__(self, make: Callable[[Any], R]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> R: ...

    def __get__(self, instance: object, owner: type | None = None) -> R | Self:
        if instance is None:
            return self
        value = self.make(instance)
        setattr(instance, self.name, value)  # found from now on before this is asked
        return value


def over_images(value: Shaped[Tensor, "b"], images: Tensor) -> Tensor:
    """Reshape per-image numbers (B,) to (B, 1, ..., 1), so that they scale `images` (B, ...), in its dtype.

    Plain broadcasting would silently pair a (B,) vector with the last axis of an image whose width is B, or turn
    (B, 1)·(B,) into a (B, B) table; every product of the two goes through here instead.

    Raises:
        ValueError: `value` is not a vector with one entry per image.
    """
    if value.ndim != 1 or value.shape[0] != images.shape[0]:
        raise ValueError(
            f"expected one number per image, shape ({images.shape[0]},), got {tuple(value.shape)}: "
            "reduce over all pixels first, for example with x.flatten(1).mean(1)"
        )
    return value.to(images.dtype).reshape(-1, *(1,) * (images.ndim - 1))


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of a network are, or its buffers; the CPU of one that has neither."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


PINNED = {"cuda"}
"""Kinds of devices that copy from pinned memory while the host goes on."""


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The tensor there, without waiting: what comes from pageable memory would be copied once the GPU has come so far."""
    if x.device.type == "cpu" and device.type in PINNED:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def bytes_of(values: Tensor) -> memoryview:
    """The bytes of a tensor's values, in order: for checksums."""
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def not_finite(module: nn.Module) -> str | None:
    """The name of a parameter with a value that is not finite; None if there is none. Buffers may mean their infinities."""
    own = {name: p.to_local() if hasattr(p, "to_local") else p for name, p in module.named_parameters()}
    if all_finite(own.values()):
        return None
    return next(name for name, p in own.items() if not all_finite([p]))


@torch.no_grad()
def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite: their sum of squares is, which is read once and fast, or else a look at each of them."""
    some = [x for x in values if x.is_floating_point()]
    return bool(torch.isfinite(get_total_norm(some))) or all(bool(torch.isfinite(x).all()) for x in some)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode; after it each of its parts is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def image_mean(values: Tensor) -> Float[Tensor, "b"]:
    """Mean over everything but the first axis: (B, ...) -> (B,)."""
    flat = values.flatten(1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        return flat.mean(1)  # a sum may be too large for them
    return flat.sum(1) / flat.shape[1]  # as mean(1), whose gradient would be written out for each value


def image_sum(values: Tensor) -> Float[Tensor, "b"]:
    """Sum over everything but the first axis: (B, ...) -> (B,)."""
    return values.flatten(1).sum(1)


def average_in_bins(average: Tensor, seen: Tensor, index: Tensor, values: Tensor, decay: float) -> None:
    """Take values (n,), of the bins index (n,), both on the CPU, into moving averages (bins,), in place.

    Args:
        average: of each bin, which starts at 0; average/seen has no start-up bias.
        seen: the weight that has been gathered in each.
        index: which bin a value is of.
        values: float64.
        decay: kept of a bin's average each time that it has values.
    """
    count = torch.bincount(index, minlength=len(average)).double()
    mean = torch.bincount(index, values, minlength=len(average)) / count.clamp(min=1)
    keep = torch.where(count > 0, decay, 1.0)
    for own, new in ((average, mean), (seen, torch.ones_like(mean))):
        own.mul_(keep.to(own.device)).add_(((1 - keep) * new).to(own.device))


class PreciseModule(nn.Module):
    """`.half()` or `.to(torch.bfloat16)` of a model that holds this moves it to a device, but never rounds it.

    In bf16 alpha_bar is 1 for the first steps of a schedule and no noise would be added (diffusers#3005).
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_precision(x: Tensor) -> Tensor:
            y = fn(x)
            coarser = x.is_floating_point() and torch.finfo(y.dtype).eps > torch.finfo(x.dtype).eps
            return x.to(y.device) if coarser else y

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
        return self
