"""A control variate for the parts of a bound: what an analytic denoiser and simple statistics of the image explain."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xhat.tensors import image_mean, over_images

IMAGE, NOISE = 4, 4  # features of each kind
TINY = 1e-300  # a mean square's least value where its logarithm or its inverse is taken


@dataclass(frozen=True)
class Control:
    """part_i ~ constant_i · (features of x0) + slope_i · (features of the noise), frozen before any image is measured.

    The features of the noise have mean 0 at every noise level, and the sum over all parts of the first half is known for
    each image: what is subtracted from the parts that are drawn is added back exactly.

    Attributes:
        constant: (count, IMAGE), for `image_features`.
        slope: (count, NOISE), for `noise_features`.
    """

    constant: Tensor
    slope: Tensor

    @classmethod
    def none(cls, count: int) -> "Control":
        """Nothing explained: the estimate without a control variate."""
        return cls(torch.zeros(count, IMAGE, dtype=torch.float64), torch.zeros(count, NOISE, dtype=torch.float64))

    def of(self, index: Tensor, image: Tensor, noise: Tensor) -> Tensor:
        """The explained part (n,) for parts `index` (n,) 1..count, from features (n, IMAGE) and (n, NOISE)."""
        return (self.constant[index - 1] * image).sum(1) + (self.slope[index - 1] * noise).sum(1)


def image_features(x0: Tensor) -> Tensor:
    """1, the mean square, and the mean variances of 3x3 and 9x9 windows, (B, 4) float64."""
    near, far = (image_mean(_local(x0, side)[1]) for side in (3, 9))
    return torch.stack([torch.ones(len(x0), device=x0.device), image_mean(x0**2), near, far], dim=1).double().cpu()


def noise_features(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Squared noise errors of analytic denoisers less their mean over the noise, per image, (B, 4) float64.

    If pixels were N(m, v), the best denoiser would err by noise - noise_hat = g noise - (1 - g)(x0 - m)/r, with r =
    sigma/alpha and g = v/(v + r²). First v = inf, where the error is the noise itself; then m and v are the mean and the
    variance of each pixel's 3x3 window. Two more, for networks between these: the first in proportion to the window's contrast,
    sqrt(v) (noise² - 1), and g noise · (the sum of its eight neighbours), which are independent of it.

    Each mean is 0 at every noise level, whatever the image: E noise² = 1, E noise = 0, E noise noise' = 0.

    Args:
        x0: images (B, C, H, W).
        noise: in them, shaped alike.
        alpha: (B,).
        sigma: (B,).
    """
    mean, variance = _local(x0)
    ratio = over_images(sigma / alpha, x0).clamp(max=1e6)
    gain = variance / (variance + ratio**2)
    offset = -(x0 - mean) * ratio / (variance + ratio**2)
    flat = noise**2 - 1
    local = gain**2 * flat + 2 * gain * offset * noise
    near = gain * noise * _neighbours(noise)
    return torch.stack([image_mean(f) for f in (flat, local, flat * variance.sqrt(), near)], dim=1).double().cpu()


def _local(x0: Tensor, side: int = 3) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel's window of this odd side, edges repeated."""
    if x0.ndim != 4 or min(x0.shape[2:]) < 2:
        return x0, torch.ones_like(x0)
    around = F.pad(x0, (side // 2,) * 4, mode="replicate")
    mean = F.avg_pool2d(around, side, stride=1)
    return mean, (F.avg_pool2d(around**2, side, stride=1) - mean**2).clamp(min=1e-6)


def _neighbours(noise: Tensor) -> Tensor:
    """The sum of each pixel's eight neighbours, 0 beyond the edge: independent of the pixel itself."""
    if noise.ndim != 4:
        return torch.zeros_like(noise)
    return F.avg_pool2d(noise, 3, stride=1, padding=1, divisor_override=1) - noise


@dataclass(frozen=True)
class Fit:
    """Least squares in each cell of neighbouring parts.

    Attributes:
        coefficients: (cells, features); the first feature is the constant.
        left: mean square of what they leave of a value, (cells,).
    """

    coefficients: Tensor
    left: Tensor


def fit(value: Tensor, cell: Tensor, features: Tensor, middle: Tensor, weight: float = 100.0) -> Fit:
    """Least squares in each cell, shrunk towards its neighbours.

    First each cell alone, all but the constant shrunk as if 4 draws had shown no relation. Then, twice, as if `weight` draws
    had shown the slopes of its two neighbours, for values and features in units of their spread (`_between_neighbours`). The
    mean square is corrected for the coefficients spent, so that a cell with few draws is not believed. It stays each cell's
    own: where rare draws dominate, neighbours differ by many orders of magnitude, and the smaller would starve the larger.

    Args:
        value: of a part, (n,).
        cell: it belongs to, (n,), each of 0..cells-1 at least twice.
        features: (n, features), the first one 1.
        middle: of the cells, a part's number, (cells,).
        weight: of the neighbours, in draws.
    """
    count, kinds = len(middle), features.shape[1]
    prior, draws = torch.zeros(count, kinds, dtype=torch.float64), 4.0
    for _ in range(3):
        coefficients, slopes = torch.zeros(2, count, kinds, dtype=torch.float64)
        left, scale = torch.zeros(2, count, dtype=torch.float64)
        for c in range(count):
            own = cell == c
            y, x = value[own], features[own]
            centre, spread = x.mean(0), x.std(0)
            used = spread > 1e-12
            used[0] = False  # the constant
            z = (x[:, used] - centre[used]) / spread[used]
            square = z.T @ z
            eye = torch.eye(len(square), dtype=torch.float64)
            scale[c] = y.std()
            slopes[c, used] = torch.linalg.solve(square + draws * eye, z.T @ (y - y.mean()) + draws * prior[c, used])
            coefficients[c, used] = slopes[c, used] / spread[used]
            coefficients[c, 0] = y.mean() - (coefficients[c] * centre)[1:].sum()
            spent = 1 + int(used.sum()) * len(y) / (len(y) + draws)
            left[c] = (y - x @ coefficients[c]).square().sum() / max(1, len(y) - spent)
        prior = _between_neighbours(slopes / scale.clamp(min=TINY)[:, None], middle) * scale[:, None]
        draws = weight
    return Fit(coefficients, left)


def _between_neighbours(values: Tensor, middle: Tensor) -> Tensor:
    """Each row (cells, ...) replaced by the line through its neighbours over the logarithm of the part; the ends are kept."""
    x = middle.log().reshape(-1, *[1] * (values.ndim - 1))
    between = values.clone()
    between[1:-1] = torch.lerp(values[:-2], values[2:], (x[1:-1] - x[:-2]) / (x[2:] - x[:-2]))
    return between


def between_cells(values: Tensor, middle: Tensor, count: int) -> Tensor:
    """Values (cells, ...) at the cells' middles, interpolated to every part, (count, ...)."""
    flat = values.reshape(len(values), -1).numpy()
    parts = np.arange(1, count + 1)
    columns = [np.interp(parts, middle.numpy(), column) for column in flat.T]
    return torch.from_numpy(np.stack(columns, axis=1)).reshape(count, *values.shape[1:])
