"""Precision and recall of samples, by nearest neighbours in features."""

import torch
from torch import Tensor

NEIGHBOURS, MOST, ROWS = 3, 5_000, 1_000
"""Neighbours that a ball reaches to; points of each set that are looked at, at most; and at a time."""


def precision_and_recall(samples: Tensor, reference: Tensor) -> tuple[float, float] | None:
    """The share of samples that are in a ball around a real image, and of real images that are in one around a sample.

    A ball reaches to the point's third neighbour in its own set (Kynkäänniemi et al. 2019, eq. 1 and 2). The first says how
    many samples look real, the second how much of what is real is drawn: one that falls alone is what a distance hides. Of
    equal numbers of each set, the first so many; both grow with the number, so that only equal numbers compare.

    Args:
        samples: features (N, D) of the generated images.
        reference: features (M, D) of the real ones.

    Returns:
        None where a set has no more points than neighbours.
    """
    most = min(MOST, len(samples), len(reference))
    if most <= NEIGHBOURS:
        return None
    fake, real = samples[:most].double(), reference[:most].double()
    return _covered(fake, real), _covered(real, fake)


def _covered(points: Tensor, centres: Tensor) -> float:
    """The share of points that are in a ball around one of the centres."""
    reach = torch.cat([_far(part, centres).kthvalue(NEIGHBOURS + 1, dim=1).values for part in centres.split(ROWS)])
    return float(torch.cat([(_far(part, centres) <= reach).any(1) for part in points.split(ROWS)]).double().mean())


def _far(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
