"""Modules whose tables keep their precision when a whole model is cast."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


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
