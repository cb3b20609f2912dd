"""The least denoising error that any denoiser can have on a data set, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.evaluation.denoising import LEVELS, level_noise


@dataclass(frozen=True)
class FloorErrors:
    """Mean over pixels of the squared error of x0 for each image at each level, (L, N) float64.

    Attributes:
        lower: of a denoiser that knows the data and the image itself, one among equals: E[lower] <= the optimum.
        upper: of one that knows the data, but not the image: E[upper] >= the optimum.
    """

    lower: Tensor
    upper: Tensor


@torch.no_grad()
def floor_errors(
    data: Tensor,
    x0: Tensor,
    data_labels: Tensor | None = None,
    labels: Tensor | None = None,
    logsnr: Sequence[float] = LEVELS,
    seed: int = 0,
    batch: int = 250,
) -> FloorErrors:
    """Bracket the optimal error E ‖x0 - E[x0 | z]‖² of the distribution that data and x0 were drawn from.

    For the M images x_i of `data`, with equal probability, the posterior mean is a softmax: E[x0 | z] = sum_i w_i x_i,
    w_i ∝ exp(-‖z - alpha x_i‖²/(2 sigma²)) (Vincent 2011; Karras et al. 2022, eq. 57). An image x0 that is not among them,
    drawn as they were, gives two errors. Without x0, this is some denoiser, and no denoiser beats the optimum: `upper`. With
    x0 as one more of the images, it is the best denoiser of someone who knows all images, x0 included, but not which of them
    z was made from; who knows more has no larger error: `lower`. Both hold in expectation, at any M. Where images are far
    apart for the noise, the first is near 0, the second near the distance to the nearest image: there M images say little.

    The noises are those of `x0_errors`, so that differences to a model's errors are paired.

    Args:
        data: images (M, C, H, W) in [-1, 1].
        x0: other images of the same distribution (N, C, H, W).
        data_labels: (M,), for the floor of denoisers that are told the label.
        labels: of x0, (N,).
        logsnr: noise levels.
        seed: of the noise.
        batch: images of x0 at a time.
    """
    errors = torch.empty(2, len(logsnr), len(x0), dtype=torch.float64)
    groups = [(slice(None), slice(None))] if labels is None else _by_label(data_labels, labels)
    of_each = [(mine, data[those].flatten(1)) for mine, those in groups]
    known = [(mine, flat, flat.square().sum(1)) for mine, flat in of_each]
    for first in range(0, len(x0), batch):
        images = x0[first : first + batch]
        for row, level in enumerate(logsnr):
            snr = torch.tensor(level, dtype=torch.float64).exp()
            # only z/alpha = x0 + noise/sqrt(SNR) matters, so that no schedule enters
            seen = (images + level_noise(images, level, first, seed) / float(snr.sqrt())).flatten(1)
            for mine, flat, norms in known:
                chosen = _within(mine, first, len(images))
                if chosen.numel():
                    found = _both(seen[chosen], images.flatten(1)[chosen], flat, norms, float(snr))
                    errors[:, row, first + chosen] = found.double()
    return FloorErrors(errors[0], errors[1])


def _both(seen: Tensor, x0: Tensor, data: Tensor, norms: Tensor, snr: float) -> Tensor:
    """lower and upper (2, N): with own weight p, x0_hat = p x0 + (1 - p) · the mean over the others."""
    logits = snr * (seen @ data.T - norms / 2)
    own = snr * ((seen * x0).sum(1) - x0.square().sum(1) / 2)
    upper = (x0 - logits.softmax(1) @ data).square().mean(1)
    others = torch.sigmoid(logits.logsumexp(1) - own)
    return torch.stack([others.square() * upper, upper])


def _by_label(data_labels: Tensor | None, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each label that x0 has: which of x0, which of the data.

    Raises:
        ValueError: the data have no labels, or not all of them.
    """
    pairs = []
    for label in labels.unique():
        those = torch.empty(0) if data_labels is None else (data_labels == label).nonzero()[:, 0]
        if not len(those):
            raise ValueError(f"no image of the data has the label {int(label)}: the floor given labels needs some")
        pairs.append(((labels == label).nonzero()[:, 0], those))
    return pairs


def _within(mine: Tensor | slice, first: int, count: int) -> Tensor:
    """Which of x0[first : first + count] are chosen, counted from `first`."""
    if isinstance(mine, slice):
        return torch.arange(count)
    return mine[(mine >= first) & (mine < first + count)] - first
