"""Which samples are kept from training, to measure on."""

import numpy as np
import torch
from torch import Tensor

from xhat.rng import generator

LEAST_HELD_OUT, MOST_HELD_OUT = 16, 1000


def aside(length: int, share: float, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Numbers of the samples to train on, and of a random share that is kept from it; None if that is too few to say much.

    Which ones is a function of their number (and of the labels, where a class would be left without a sample to train on), so
    that it is the same set on every machine and in every later measurement.

    Args:
        length: how many samples there are.
        share: to keep, at most 1,000; fewer than 16 are none.
        labels: (length,), of which every class keeps one to train on.
    """
    count = min(MOST_HELD_OUT, int(share * length))
    if count < LEAST_HELD_OUT:
        return torch.arange(length), None
    order = torch.randperm(length, generator=generator("held out", length))
    free = order if labels is None else _spared(order, labels.cpu())
    out = (free if len(free) >= count else order)[:count]
    kept = order[~torch.isin(order, out)]
    return kept.sort().values, out  # in a random order: the first few are of all kinds, also where the data are sorted


def _spared(order: Tensor, labels: Tensor) -> Tensor:
    """The order without the last sample of each class in it: every class keeps one to train on."""
    _, last = np.unique(labels[order].flip(0).numpy(), return_index=True)
    free = torch.ones(len(order), dtype=torch.bool)
    free[len(order) - 1 - torch.from_numpy(last)] = False
    return order[free]
