"""How far samples of fields are from real ones where no network of features knows them: spectra and histograms."""

from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILES, MOST_VALUES, AT_A_TIME = 999, 4_000_000, 64
"""Of a histogram; how many values of a channel it is made of, at most; samples that are transformed at a time."""


@dataclass(frozen=True)
class FieldDistance:
    """Samples beside real fields; 0 is no difference.

    Attributes:
        spectrum_db: mean over channels and wavenumbers of |10 log10(power of samples / power of real ones)|, in decibels: 3
            is a factor of two. None of vectors, which have no wavenumbers.
        histogram_sd: Wasserstein-1 distance of the values of a channel in its standard deviations, mean over channels.
        ratio: power of samples over power of real ones at each wavenumber, mean over channels (geometric).
    """

    spectrum_db: float | None
    histogram_sd: float
    ratio: list[float]


def field_distance(samples: Tensor, real: Tensor) -> FieldDistance:
    """Between samples (N, C, ...) and real ones (M, C, ...), in any units that both are in; constant channels do not count."""
    flat = real.transpose(0, 1).flatten(1)
    moving = (flat.amax(1) > flat.amin(1)).nonzero().squeeze(1)  # a channel that is the same everywhere has no scale
    if not len(moving):
        return FieldDistance(None, 0.0, [])
    samples, real = samples[:, moving], real[:, moving]
    if samples.ndim < 3:
        return FieldDistance(None, histogram_distance(samples, real), [])
    decibels = 10 * (spectrum(samples).clamp(min=1e-300) / spectrum(real).clamp(min=1e-300)).log10()
    ratio = (10 ** (decibels.mean(0) / 10)).tolist()
    return FieldDistance(float(decibels.abs().mean()), histogram_distance(samples, real), ratio)


def spectrum(values: Tensor) -> Tensor:
    """Power at wavenumbers 1, 2, ... up to half of the shortest axis, (C, K): |FFT|² / values, mean over samples and rings.

    The mean of each sample, wavenumber 0, is left out. A wavenumber is a number of waves along the sample, whatever its length.
    """
    axes = tuple(range(2, values.ndim))
    sides = values.shape[2:]
    waves = [torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) for side in sides]
    ring = torch.stack(torch.meshgrid(*waves, indexing="ij")).square().sum(0).sqrt().round().long()
    count = max(1, min(sides) // 2)
    power = torch.zeros(values.shape[1], *sides, dtype=torch.float64)
    for part in values.split(AT_A_TIME):
        power += torch.fft.fftn(part.cpu().double(), dim=axes).abs().square().sum(0)
    power /= len(values) * ring.numel()
    flat, of = power.flatten(1), ring.flatten()
    sums = torch.zeros(len(power), int(of.max()) + 1, dtype=torch.float64).index_add(1, of, flat)
    return (sums / of.bincount())[:, 1 : count + 1]


def histogram_distance(samples: Tensor, real: Tensor) -> float:
    """Mean over channels of the Wasserstein-1 distance of their values, in standard deviations of the real ones."""
    places = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    found = []
    for channel in range(real.shape[1]):
        mine, its = (_values(x[:, channel]) for x in (samples, real))
        spread = float(its.std().clamp(min=1e-300))
        found.append(float((_quantiles(mine, places) - _quantiles(its, places)).abs().mean()) / spread)
    return sum(found) / len(found)


def _values(values: Tensor) -> Tensor:
    flat = values.reshape(-1).cpu().double()
    return flat[:: max(1, len(flat) // MOST_VALUES)]


def _quantiles(values: Tensor, places: Tensor) -> Tensor:
    """Values at places of the order, between neighbours linearly; torch.quantile takes no more than 16 million."""
    ordered = values.sort().values
    at = places * (len(ordered) - 1)
    low = at.floor().long()
    return torch.lerp(ordered[low], ordered[(low + 1).clamp(max=len(ordered) - 1)], at - low)
