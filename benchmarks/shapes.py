"""Generated colour pictures of 32 x 32, and a network to compare them by.

As parts of a config or a study, `--use benchmarks/shapes.py` names the data `shapes(n)`: a background that goes from one colour
to another, with one to three discs, squares and triangles on it, and the noise of a camera, whose standard deviation is two of
255 levels, so that the last bits are as hard to tell as in photographs. And the features `random_features`: two layers of
convolutions that nobody has trained, means and maxima over the picture. Distances in them see colours, edges and their places.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import xhat

SIDE, MOST, NOISE, FINE = 32, 3, 2.0, 4


def picture(generator: torch.Generator, n: int) -> Tensor:
    """n pictures (n, 3, 32, 32), uint8; drawn four times as large, and made smaller."""
    size = SIDE * FINE
    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, size)], indexing="ij")
    ends = torch.rand(n, 2, 3, 1, 1, generator=generator)
    angle = 2 * torch.pi * torch.rand(n, 1, 1, 1, generator=generator)
    along = (1 + (x * angle.cos() + y * angle.sin()) / 2**0.5) / 2
    images = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * along
    count = torch.randint(1, MOST + 1, (n,), generator=generator)
    for number in range(MOST):
        kind = torch.randint(0, 3, (n, 1, 1, 1), generator=generator)
        u, v = (side - 1.4 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5) for side in (x, y))
        radius = 0.2 + 0.3 * torch.rand(n, 1, 1, 1, generator=generator)
        disc, square = u**2 + v**2 < radius**2, torch.maximum(u.abs(), v.abs()) < 0.85 * radius
        triangle = (v < 0.6 * radius) & (v > 2 * u.abs() - radius)
        inside = torch.where(kind == 0, disc, torch.where(kind == 1, square, triangle)) & (number < count).reshape(-1, 1, 1, 1)
        images = torch.where(inside, torch.rand(n, 3, 1, 1, generator=generator), images)
    small = 255 * F.avg_pool2d(images, FINE)
    return (small + NOISE * torch.randn(small.shape, generator=generator)).round().clamp(0, 255).byte()


@xhat.register.data
def shapes(n: int = 12_000, seed: int = 0) -> xhat.data.DataSource:
    """n pictures, always the same."""
    own = torch.Generator().manual_seed(0)
    pixels = torch.cat([picture(own, min(500, n - first)) for first in range(0, n, 500)])
    return xhat.data.from_tensors(pixels, held_out=1 / 6, seed=seed, name="shapes")


@xhat.register.features
class RandomFeatures(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] to features (B, 128)."""

    def __init__(self) -> None:
        super().__init__()
        own = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 5, stride=2), nn.Conv2d(32, 64, 5, stride=2)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=own) / max(1, p[0].numel()) ** 0.5

    def forward(self, images: Tensor) -> Tensor:
        """Means and maxima of the second layer."""
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(images), 0.2)), 0.2)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
