"""What a network's squared error in a pixel is expected to be, given the noise in that pixel: learned on the pilot."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from xhat.tensors import image_mean, over_images

SPACING = 2 / 255  # of 8-bit values in [-1, 1]
KNOWN = 3  # functions of a pixel's noise, beside the constant
PRIOR = 10.0  # pixels that show no relation to the noise, added to those of each kind
REACH = 3  # neighbouring levels on each side of the nearest one: the next is less likely by exp(-24)


@dataclass(frozen=True)
class PixelErrors:
    """(noise_hat - noise)² in a pixel ~ constant + slopes · (e, e² - 1, d² - E d²), given its kind and its own noise e.

    d is the error of the denoiser that knows of a pixel that its value is one of the 8-bit levels, and no more (`of_levels`):
    at low noise most errors are that large, and no power of e is like it. The three have mean 0, whatever the kind.

    Attributes:
        values: edges between kinds of pixels, by their value, ascending.
        spreads: the same by the standard deviation of their 3x3 window.
        slopes: (cells, kinds, 3). All float64.
    """

    values: Tensor
    spreads: Tensor
    slopes: Tensor

    @classmethod
    def none(cls, cells: int) -> "PixelErrors":
        """One kind of pixels, of which nothing is known."""
        none, slopes = torch.zeros(0, dtype=torch.float64), torch.zeros(cells, 1, KNOWN, dtype=torch.float64)
        return cls(none, none, slopes)

    def explained(self, x0: Tensor, noise: Tensor, cell: Tensor, ratio: Tensor) -> Tensor:
        """What is so known of each image's mean squared error, its mean over the noise taken off, (B,) float64 on the CPU.

        Args:
            x0: images (B, ...).
            noise: in them, shaped alike.
            cell: of the part that they are measured at, (B,).
            ratio: sigma/alpha there, (B,).
        """
        slopes = self.slopes.to(x0)[cell.to(x0.device)]  # (B, kinds, 3)
        kind = kinds(x0, self.values, self.spreads).flatten(1)
        functions = of_noise(noise, ratio).flatten(2)
        each = (slopes[..., k].gather(1, kind) * functions[k] for k in range(KNOWN))
        return image_mean(sum(each, torch.zeros_like(functions[0]))).double().cpu()


def edges(x0: Tensor) -> tuple[Tensor, Tensor]:
    """Edges between kinds of the pixels of such images: ten kinds of values, the two ends alone, and six of spreads."""
    some = x0.flatten()[:: 1 + x0.numel() // 10**6].float()
    low, high = some.quantile(0.001), some.quantile(0.999)
    inner = torch.linspace(0.05, 0.95, 6, device=x0.device)
    relative = torch.cat([inner.new_tensor([5e-4]), inner, inner.new_tensor([0.985, 1 - 5e-4])])
    spread = _spread(x0).flatten()[:: 1 + x0.numel() // 10**6].float()
    least = 1e-3 * (high - low)
    spread = spread[spread > least]
    steps = torch.linspace(0.2, 0.8, 4, device=x0.device)
    more = spread.quantile(steps) if len(spread) else steps[:0]
    return (low + relative * (high - low)).double().cpu(), torch.cat([least.reshape(1), more]).double().cpu()


def kinds(x0: Tensor, values: Tensor, spreads: Tensor) -> Tensor:
    """Of each pixel, shaped like x0, 0 to (len(values) + 1)(len(spreads) + 1) - 1."""
    by_value = torch.bucketize(x0, values.to(x0))
    return by_value * (len(spreads) + 1) + torch.bucketize(_spread(x0), spreads.to(x0))


def of_noise(noise: Tensor, ratio: Tensor) -> Tensor:
    """The three functions of a pixel's noise, (3, B, ...)."""
    return torch.stack([noise, noise**2 - 1, _of_grid(noise, ratio)])


def of_levels(noise: Tensor, ratio: Tensor) -> Tensor:
    """The error, in units of the noise, of the best denoiser of one pixel whose value is any level of the 8-bit grid.

    z/alpha = x + ratio · e, and x is x0 plus any multiple of the grid's spacing, each as likely as another:
    x_hat - x0 = spacing · sum_k k w_k / sum_k w_k, w_k = exp(-(e - k a)²/2), a = spacing/ratio. The grid's ends are not
    known to it.

    Args:
        noise: e, (B, ...).
        ratio: sigma/alpha, (B,), at most half the spacing.
    """
    a = over_images(SPACING / ratio, noise).clamp(max=1e4).to(noise.dtype)
    nearest = (noise / a).round()
    rest = noise - nearest * a
    total, moved = torch.zeros_like(noise), torch.zeros_like(noise)
    for k in range(-REACH, REACH + 1):
        weight = torch.exp(-((rest - k * a) ** 2) / 2 + rest**2 / 2)
        total, moved = total + weight, moved + k * weight
    return (nearest + moved / total) * a


def _of_grid(noise: Tensor, ratio: Tensor) -> Tensor:
    """d² - E d², d of `of_levels`; 0 for images where half the spacing is less than the noise: there d is the noise itself."""
    sharp = (ratio <= SPACING / 2).nonzero().squeeze(1)
    if not len(sharp):
        return torch.zeros_like(noise)
    # d² is even, and analytic in e within pi/a of the real line, where a < 12 wherever e reaches half a spacing: the
    # trapezoidal rule of this width is exact to exp(-2 pi²/(12 · 0.0625)) = exp(-26)
    points = torch.linspace(0, 9, 145, dtype=torch.float64, device=noise.device)
    chance = torch.exp(-(points**2) / 2) * math.sqrt(2 / math.pi) * points[1]
    chance[0] /= 2
    own, known = ratio[sharp].double(), noise[sharp]
    mean = of_levels(points.expand(len(own), -1), own) ** 2 @ chance
    return torch.zeros_like(noise).index_copy(0, sharp, of_levels(known, own) ** 2 - over_images(mean, known))


def moments(error: Tensor, kind: Tensor, noise: Tensor, cell: Tensor, ratio: Tensor, size: tuple[int, int]) -> Tensor:
    """Sums over the pixels of each cell and kind, (cells, kinds, 4, 5) float64: of products of the constant and the three
    functions of the noise with one another, and with the squared error.

    Args:
        error: squared, (B, ...).
        kind: of the pixels, shaped alike.
        noise: in them.
        cell: of each image, (B,).
        ratio: sigma/alpha, (B,).
        size: how many cells and kinds there are.
    """
    count, most = size
    known = of_noise(noise.double().cpu(), ratio.cpu())
    columns = [torch.ones_like(known[0]), *known, error.double().cpu()]
    place = (over_images(cell.cpu() * most, kind) + kind.cpu()).flatten()
    found = torch.zeros(KNOWN + 1, KNOWN + 2, count * most, dtype=torch.float64)
    for i in range(KNOWN + 1):
        for j in range(KNOWN + 2):
            found[i, j] = found[j, i] if j < i else found[i, j].index_add(0, place, (columns[i] * columns[j]).flatten())
    return found.movedim(2, 0).reshape(count, most, KNOWN + 1, KNOWN + 2)


def learned(values: Tensor, spreads: Tensor, sums: Tensor) -> PixelErrors:
    """Least squares for each cell and kind, from `moments`; half of each neighbouring cell's pixels count as well."""
    alone, sums = sums, sums.clone()
    sums[1:] += alone[:-1] / 2
    sums[:-1] += alone[1:] / 2
    squares, products = sums[..., :-1], sums[..., -1:]
    prior = torch.tensor([1e-9] + KNOWN * [PRIOR], dtype=torch.float64).diag()  # the constant is not shrunk
    found = torch.linalg.solve(squares + prior, products)[..., 1:, 0]
    return PixelErrors(values, spreads, found.nan_to_num(0, 0, 0))  # of errors too large to be squared nothing is learned


def _spread(x0: Tensor) -> Tensor:
    return local(x0)[1].sqrt()


def local(x0: Tensor, side: int = 3) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel's window of this odd side, edges repeated; of what is no image its value, and 1."""
    if x0.ndim != 4 or min(x0.shape[2:]) < 2:
        return x0, torch.ones_like(x0)
    around = F.pad(x0, (side // 2,) * 4, mode="replicate")
    mean = F.avg_pool2d(around, side, stride=1)
    return mean, (F.avg_pool2d(around**2, side, stride=1) - mean**2).clamp(min=1e-6)
