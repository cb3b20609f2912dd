"""What a penalty is."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xhat.objective.draw import Draw
from xhat.registry import PENALTIES

__all__ = ["DrawPenalty", "minus", "Paired", "Penalty"]

Penalty = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [-1, 1] -> one number for each, (B,)."""

DrawPenalty = Callable[[Tensor, Draw], Tensor]
"""A penalty that also sees the draw: what the network was told (`draw.cond`), what came with the batch (`draw.extra`)."""


@dataclass(frozen=True)
class Paired:
    """A penalty that compares the estimate with the clean image it was made from; `ImageLoss` hands it both.

    Attributes:
        fn: (images, x0), both (B, C, H, W) in [-1, 1] -> (B,).
    """

    fn: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, x0: Tensor) -> Tensor:
        return self.fn(images, x0)


@PENALTIES.register
def minus(penalty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """-penalty: the reward that a penalty is, and the penalty that a reward is; one that is handed the draw stays so."""
    if takes_draw(penalty):
        return lambda images, draw: -penalty(images, draw)
    return lambda images: -penalty(images)


def takes_draw(penalty: Any) -> bool:
    """Whether a penalty has a second parameter that must be given, which is the draw."""
    try:
        called = penalty.forward if isinstance(penalty, nn.Module) else penalty
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):  # of some built-in functions nobody knows
        return False
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return not isinstance(penalty, Paired) and len(by_place) > 1 and by_place[1].default is inspect.Parameter.empty


def of_images_alone(penalty: Any) -> bool:
    """Whether a penalty needs nothing but images."""
    return not isinstance(penalty, Paired) and not takes_draw(penalty)
