"""Which values of an error count: masks that come with the batch, one for each sample."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.objective.draw import Draw
from xhat.registry import WHERE
from xhat.tensors import image_sum

__all__ = ["Where", "masked", "masked_mean"]

Where = Callable[[Draw, Tensor], Tensor]
"""(draw, values (B, ...)) -> how often each value counts, at least 0 and broadcastable to the values."""


@WHERE.register
@dataclass(frozen=True)
class masked:
    """The mask `draw.extra[key]`: the mean over all values of mask · loss, which grows with the mask's area.

    Attributes:
        key: of the mask, (B, ...) with as many axes as the values, each of their length or 1; or without the channel axis.
            bool or at least 0.

    Raises:
        ValueError: when called: there is no such mask, it is negative, or it does not fit the values.
    """

    key: str

    def __call__(self, draw: Draw, values: Tensor) -> Tensor:
        if draw.extra is None or self.key not in draw.extra:
            there = f"it has {', '.join(draw.extra)}" if draw.extra else "it has nothing"
            raise ValueError(
                f'a mask "{self.key}" is needed beside the batch, {there}: pass extra={{"{self.key}": mask}} to the '
                "objective, or let the data source give it as Batch.extra"
            )
        return on_values(torch.as_tensor(draw.extra[self.key]), values, f'extra["{self.key}"]')


@WHERE.register
@dataclass(frozen=True)
class masked_mean:
    """As `masked`, divided by the mask's share of each sample: the mean over the mask's own area; 0 if it is empty.

    Attributes:
        key: as of `masked`.
    """

    key: str

    def __call__(self, draw: Draw, values: Tensor) -> Tensor:
        mask = masked(self.key)(draw, values)
        share = image_sum(mask.expand_as(values)) / values[0].numel()
        per_sample = torch.where(share > 0, share, torch.ones_like(share))  # an empty mask: 0/1 instead of 0/0
        return mask / per_sample.reshape(-1, *(1,) * (values.ndim - 1))


def on_values(mask: Tensor, values: Tensor, name: str) -> Tensor:
    """A mask with the axes, the device and the dtype of the values (B, ...).

    Args:
        mask: (B, ...), each axis as long as that of the values or 1; the channel axis may be missing.
        values: what it is laid on.
        name: of the mask, for the error.

    Raises:
        ValueError: it is negative, or does not fit.
    """
    full = mask.unsqueeze(1) if mask.ndim == values.ndim - 1 else mask
    pairs = list(zip(full.shape, values.shape, strict=False))
    if full.ndim != values.ndim or len(full) != len(values) or any(own not in (1, n) for own, n in pairs):
        raise ValueError(
            f"{name} of shape {tuple(mask.shape)} does not fit values of shape {tuple(values.shape)}: give one mask for each "
            "sample, each axis as long as that of the values or 1"
        )
    if not bool((full >= 0).all()):
        raise ValueError(f"{name} has values below 0, or NaN: a mask says how much each value counts")
    return full.to(values)


def where_counted(weight: Tensor, values: Tensor) -> Tensor:
    """The values, and 0 where the weight is 0: neither an infinite value nor its gradient gets through."""
    return torch.where(weight > 0, values, torch.zeros_like(values))
