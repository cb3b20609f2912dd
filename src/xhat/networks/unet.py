"""A small U-Net that is fast on a CPU: pixels are folded into channels first, so that no convolution runs at full size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat.budgets import require_at_most
from xhat.networks.layers import Embedding, float32_edge, rms_norm, to_body, zeroed
from xhat.registry import NETWORKS


class Residual(nn.Module):
    """x + conv(silu(conv(silu(FiLM(norm(x)))))), the second convolution zero at first. A second norm did not pay."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.film = zeroed(nn.Linear(embedding, 2 * width))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(film(rms_norm(x, 1), self.film(e))))
        out: Tensor = x + self.conv2(F.silu(h))
        return out


class Level(nn.ModuleList):
    """Residual blocks at one size."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for block in self:
            x = block(x, e)
        return x


@NETWORKS.register
class UNet(nn.Module):
    """Folds `fold` x `fold` pixels into channels, then residual blocks at one size per width, skips added on the way up.

    Called as net(z (B, C, H, W), t (B,), label (B,) or None) -> (B, outputs, H, W). The output is zero at first.

    Args:
        channels: of the images.
        outputs: of the network; by default as many as channels.
        size: side of the images; only checked for divisibility by fold · 2^(levels - 1).
        classes: number of class labels; None is unconditional.
        widths: channels at each level, from the largest maps to the smallest.
        blocks: residual blocks at each level; above the lowest, so many on the way down and on the way up.
        fold: side of the pixel blocks that become channels.
        embedding: width of the time and label vector.
        last: side of the last convolution's kernel.
    """

    def __init__(
        self,
        channels: int = 1,
        outputs: int | None = None,
        size: int | None = None,
        classes: int | None = None,
        widths: tuple[int, ...] = (32, 64),
        blocks: tuple[int, ...] = (1, 4),
        fold: int = 2,
        embedding: int = 128,
        last: int = 3,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or len(widths) < 1:
            raise ValueError(f"widths {widths} and blocks {blocks} must name the same levels")
        require_at_most(1000, blocks=sum(blocks), levels=len(widths))
        require_at_most(65_536, widths=max(widths), embedding=embedding, fold=fold, last=last)
        unit = fold * 2 ** (len(widths) - 1)
        if size is not None and size % unit:
            raise ValueError(f"this U-Net needs images whose side is a multiple of {unit}, not {size}: set image_size")
        self.channels, self.classes, self.fold = channels, classes, fold
        self.embedding = Embedding(embedding, classes)
        self.first = nn.Conv2d(channels * fold**2, widths[0], 3, padding=1)

        def level(width: int, count: int) -> Level:
            return Level(Residual(width, embedding) for _ in range(count))

        upper = list(zip(widths, widths[1:], blocks, strict=False))
        self.down = nn.ModuleList(level(w, n) for w, _, n in upper)
        self.shrink = nn.ModuleList(nn.Conv2d(w, below, 2, stride=2) for w, below, _ in upper)
        self.bottom = level(widths[-1], blocks[-1])
        self.grow = nn.ModuleList(nn.Conv2d(below, 4 * w, 1) for w, below, _ in upper)
        self.up = nn.ModuleList(level(w, n) for w, _, n in upper)
        self.film = zeroed(nn.Linear(embedding, 2 * widths[0]))
        self.last = zeroed(nn.Conv2d(widths[0], (outputs or channels) * fold**2, last, padding=last // 2))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        with float32_edge(z.device):
            x = F.pixel_unshuffle(z, self.fold).contiguous(memory_format=torch.channels_last)
            x = self.first(x)
        x, e = to_body(x), self.embedding(t, label)
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(level(x, e))
            x = shrink(skips[-1])
        x = self.bottom(x, e)
        for level, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            x = level(F.pixel_shuffle(grow(x), 2) + skips.pop(), e)
        x = F.silu(film(rms_norm(x, 1), self.film(e)))
        with float32_edge(z.device):
            return F.pixel_shuffle(self.last(x.to(self.last.weight.dtype)), self.fold)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weights that map hidden channels to hidden channels, for optimizers that treat matrices apart."""
        inner = (self.down, self.shrink, self.bottom, self.grow, self.up)
        kernels = [m.weight for part in inner for m in part.modules() if isinstance(m, nn.Conv2d)]
        return [k for k in kernels if isinstance(k, nn.Parameter)]


def film(x: Tensor, scale_and_shift: Tensor) -> Tensor:
    """x (1 + scale) + shift per channel, from a vector (B, 2C) (Perez et al. 2018)."""
    scale, shift = scale_and_shift[:, :, None, None].chunk(2, dim=1)
    return x * (1 + scale) + shift
