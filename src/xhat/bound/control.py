"""A control variate for the parts of a bound: what simple statistics of the image and the noise in its pixels explain."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xhat.bound.pixels import PixelErrors, local
from xhat.tensors import image_mean

IMAGE = 4  # features of it
GROWTH = 1.12  # ratio of neighbouring cells: the first steps of a schedule differ most
TINY = 1e-300  # a mean square's least value where its logarithm or its inverse is taken


@dataclass(frozen=True)
class Control:
    """part_i ~ constant_i · (features of x0) + slope_i · (what its pixels explain), frozen before any image is measured.

    What pixels explain has mean 0 at every noise level, and the sum over all parts of the first half is known for each image:
    what is subtracted from the parts that are drawn is added back exactly.

    Attributes:
        constant: (count, IMAGE), for `image_features`.
        slope: (count,), for `PixelErrors.explained`.
        pixels: what is known of a pixel's squared error, in cells of parts.
    """

    constant: Tensor
    slope: Tensor
    pixels: PixelErrors

    @classmethod
    def none(cls, count: int) -> "Control":
        """Nothing explained: the estimate without a control variate."""
        pixels = PixelErrors.none(len(cells(count)))
        return cls(torch.zeros(count, IMAGE, dtype=torch.float64), torch.zeros(count, dtype=torch.float64), pixels)

    def of(self, index: Tensor, image: Tensor, x0: Tensor, noise: Tensor, ratio: Tensor) -> Tensor:
        """The explained half of parts `index` (n,) 1..count, (n,).

        Args:
            index: on the CPU.
            image: features, (n, IMAGE).
            x0: images (n, ...).
            noise: in them.
            ratio: sigma/alpha of the parts, (n,).
        """
        cell = torch.searchsorted(cells(len(self.slope)), index)
        return (self.constant[index - 1] * image).sum(1) + self.slope[index - 1] * self.pixels.explained(x0, noise, cell, ratio)


def cells(count: int) -> Tensor:
    """The last part of each cell, (cells,) int64: single parts first, then widths that grow by GROWTH."""
    ends, end = [], 0
    while end < count:
        end = min(count, max(end + 1, int(end * GROWTH)))
        ends.append(end)
    return torch.tensor(ends)


def image_features(x0: Tensor) -> Tensor:
    """1, the mean square, and the mean variances of 3x3 and 9x9 windows, (B, 4) float64."""
    near, far = (image_mean(local(x0, side)[1]) for side in (3, 9))
    return torch.stack([torch.ones(len(x0), device=x0.device), image_mean(x0**2), near, far], dim=1).double().cpu()


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
