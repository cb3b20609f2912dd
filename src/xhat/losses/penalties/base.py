"""What a penalty is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Paired", "Penalty"]

Penalty = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [-1, 1] -> one number for each, (B,)."""


@dataclass(frozen=True)
class Paired:
    """A penalty that compares the estimate with the clean image it was made from; `ImageLoss` hands it both.

    Attributes:
        fn: (images, x0), both (B, C, H, W) in [-1, 1] -> (B,).
    """

    fn: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, x0: Tensor) -> Tensor:
        return self.fn(images, x0)
