"""How much memory tensors take, and how many samples can be drawn at a time."""

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xhat.budgets import memory

MOST_ROWS, SMALL = 125, 2**20
"""Samples at a time, at most; and values of so many samples of which nobody need ask what a network makes of them."""
SHARE = 8
"""One part in so many of the memory is for drawing: other processes and the samples that are done need theirs."""


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensor storages that are made inside of it, as they come and go; `peak` is the most at once.

    It sees every operation of the forward and of the backward pass on any device. Neither the allocator's slack nor scratch
    memory inside of an operation is in it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage(), 0)  # if it is new here, it was made before
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._see(storage, storage.nbytes())
        return out

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self._seen:
            self.now += size
            self.peak = max(self.peak, self.now)
            self._seen[key] = weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.now -= size
        del self._seen[key]


def rows_that_fit(call: Callable[[], object], sample: Sequence[int], device: torch.device, *, latents: bool = False) -> int:
    """How many samples to draw at a time: at most 125, and of large ones as many as an eighth of the memory holds.

    Args:
        call: a call of the model for one sample, whose memory is measured; it is made for large samples and latents alone.
        sample: shape of one.
        device: whose memory counts; the CPU's is the machine's, or its container's.
        latents: whether these are latents, of whose networks a small sample says nothing.
    """
    if MOST_ROWS * math.prod(sample) <= SMALL and not latents:
        return MOST_ROWS
    with PeakBytes() as counted:
        call()
    room: int = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()
    return int(max(1, min(MOST_ROWS, room // SHARE // max(1, counted.peak))))
