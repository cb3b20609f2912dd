"""A control variate for the parts of a bound: what an analytic denoiser and simple statistics of the image explain."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xhat.shapes import image_mean, over_images


@dataclass(frozen=True)
class Control:
    """part_i ~ constant_i · (features of x0) + slope_i · (features of the noise), frozen before any image is measured.

    The features of the noise have mean 0 at every noise level, and the sum over all parts of the first half is known for
    each image: what is subtracted from the parts that are drawn is added back exactly.

    Attributes:
        constant: (count, 3), for `image_features`.
        slope: (count, 2), for `noise_features`.
    """

    constant: Tensor
    slope: Tensor

    @classmethod
    def none(cls, count: int) -> "Control":
        """Nothing explained: the estimate without a control variate."""
        return cls(torch.zeros(count, 3, dtype=torch.float64), torch.zeros(count, 2, dtype=torch.float64))

    def of(self, index: Tensor, image: Tensor, noise: Tensor) -> Tensor:
        """The explained part (n,) for parts `index` (n,) 1..count, from both kinds of features, (n, 3) and (n, 2)."""
        return (self.constant[index - 1] * image).sum(1) + (self.slope[index - 1] * noise).sum(1)


def image_features(x0: Tensor) -> Tensor:
    """1, the mean square, and the mean variance of 3x3 windows, (B, 3) float64."""
    variance = _local(x0)[1]
    return torch.stack([torch.ones(len(x0), device=x0.device), image_mean(x0**2), image_mean(variance)], dim=1).double().cpu()


def noise_features(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The squared noise error of two analytic denoisers less its mean over the noise, per image, (B, 2) float64.

    If pixels were N(m, v), the best denoiser would err by noise - noise_hat = g noise - (1 - g)(x0 - m)/r, with r =
    sigma/alpha and g = v/(v + r²). First v = inf, where the error is the noise itself; then m and v are the mean and the
    variance of each pixel's 3x3 window.

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
    return torch.stack([image_mean(flat), image_mean(local)], dim=1).double().cpu()


def _local(x0: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel's 3x3 window, edges repeated."""
    if x0.ndim != 4 or min(x0.shape[2:]) < 2:
        return x0, torch.ones_like(x0)
    around = F.pad(x0, (1, 1, 1, 1), mode="replicate")
    mean = F.avg_pool2d(around, 3, stride=1)
    return mean, (F.avg_pool2d(around**2, 3, stride=1) - mean**2).clamp(min=1e-6)


def fit(value: Tensor, cell: Tensor, features: Tensor, cells: int, ridge: float = 4.0) -> tuple[Tensor, Tensor]:
    """Least squares in each cell: coefficients (cells, 5), and the mean square of what is left, (cells,).

    All but the constant are shrunk as if `ridge` draws had shown no relation, and the mean square is corrected for the
    coefficients spent, so that a cell with few draws is not believed.
    """
    coefficients = torch.zeros(cells, features.shape[1], dtype=torch.float64)
    left = torch.zeros(cells, dtype=torch.float64)
    for c in range(cells):
        own = cell == c
        y, x = value[own], features[own]
        centre, spread = x.mean(0), x.std(0)
        used = spread > 1e-12
        used[0] = False  # the constant
        z = (x[:, used] - centre[used]) / spread[used]
        n = len(y)
        slope = torch.linalg.solve(z.T @ z + ridge * torch.eye(z.shape[1], dtype=torch.float64), z.T @ (y - y.mean()))
        coefficients[c, used] = slope / spread[used]
        coefficients[c, 0] = y.mean() - (coefficients[c] * centre)[1:].sum()
        left[c] = (y - x @ coefficients[c]).square().sum() / max(1, n - 1 - int(used.sum()))
    return coefficients, left


def between_cells(values: Tensor, middle: Tensor, count: int) -> Tensor:
    """Values (cells, ...) at the cells' middles, interpolated to every part, (count, ...)."""
    flat = values.reshape(len(values), -1).numpy()
    parts = np.arange(1, count + 1)
    columns = [np.interp(parts, middle.numpy(), column) for column in flat.T]
    return torch.from_numpy(np.stack(columns, axis=1)).reshape(count, *values.shape[1:])
