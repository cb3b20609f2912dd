"""A small U-Net that is fast on a CPU: pixels are folded into channels first, so that no convolution runs at full size.

The same code is one of signals, images and volumes: convolutions, folding and memory layout go by the number of axes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat.budgets import require_at_most
from xhat.networks.layers import Embedding, float32_edge, rms_norm, to_body, zeroed
from xhat.registry import NETWORKS

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""By the number of axes that a sample has beside its channels."""
LAYOUTS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
"""In which they are fast."""


class Residual(nn.Module):
    """x + conv(silu(conv(silu(FiLM(norm(x)))))), the second convolution zero at first. A second norm did not pay."""

    def __init__(self, width: int, embedding: int, axes: int = 2) -> None:
        super().__init__()
        self.film = zeroed(nn.Linear(embedding, 2 * width))
        self.conv1 = CONVOLUTIONS[axes](width, width, 3, padding=1)
        self.conv2 = zeroed(CONVOLUTIONS[axes](width, width, 3, padding=1))

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

    Called as net(z (B, C, H, W), t (B,), label (B,) or None) -> (B, outputs, H, W); of signals z is (B, C, L), of volumes
    (B, C, D, H, W). The output is zero at first.

    Args:
        channels: of the samples.
        outputs: of the network; by default as many as channels.
        size: side of square images, or the lengths of a sample's axes, (L,), (H, W) or (D, H, W), each a multiple of
            fold · 2^(levels - 1); None is images of any size.
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
        size: int | tuple[int, ...] | None = None,
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
        sides = size if isinstance(size, tuple) else (size or 0,) * 2
        _require_sides(sides, fold * 2 ** (len(widths) - 1))
        axes = len(sides)
        convolution = CONVOLUTIONS[axes]
        self.channels, self.classes, self.fold, self.axes = channels, classes, fold, axes
        self.embedding = Embedding(embedding, classes)
        self.first = convolution(channels * fold**axes, widths[0], 3, padding=1)

        def level(width: int, count: int) -> Level:
            return Level(Residual(width, embedding, axes) for _ in range(count))

        upper = list(zip(widths, widths[1:], blocks, strict=False))
        self.down = nn.ModuleList(level(w, n) for w, _, n in upper)
        self.shrink = nn.ModuleList(convolution(w, below, 2, stride=2) for w, below, _ in upper)
        self.bottom = level(widths[-1], blocks[-1])
        self.grow = nn.ModuleList(convolution(below, 2**axes * w, 1) for w, below, _ in upper)
        self.up = nn.ModuleList(level(w, n) for w, _, n in upper)
        self.film = zeroed(nn.Linear(embedding, 2 * widths[0]))
        self.last = zeroed(convolution(widths[0], (outputs or channels) * fold**axes, last, padding=last // 2))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        with float32_edge(z.device):
            x = folded(z, self.fold).contiguous(memory_format=LAYOUTS[self.axes])
            x = self.first(x)
        x, e = to_body(x), self.embedding(t, label)
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(level(x, e))
            x = shrink(skips[-1])
        x = self.bottom(x, e)
        for level, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            x = level(unfolded(grow(x), 2) + skips.pop(), e)
        x = F.silu(film(rms_norm(x, 1), self.film(e)))
        with float32_edge(z.device):
            return unfolded(self.last(x.to(self.last.weight.dtype)), self.fold)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weights that map hidden channels to hidden channels, for optimizers that treat matrices apart."""
        inner = (self.down, self.shrink, self.bottom, self.grow, self.up)
        kernels = [m.weight for part in inner for m in part.modules() if isinstance(m, tuple(CONVOLUTIONS.values()))]
        return [k for k in kernels if isinstance(k, nn.Parameter)]


def film(x: Tensor, scale_and_shift: Tensor) -> Tensor:
    """x (1 + scale) + shift per channel, from a vector (B, 2C) (Perez et al. 2018)."""
    scale, shift = scale_and_shift.reshape(*scale_and_shift.shape, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
    return x * (1 + scale) + shift


def folded(x: Tensor, by: int) -> Tensor:
    """Blocks of `by` along each axis become channels: (B, C, S1, S2, ...) -> (B, C · by^axes, S1/by, S2/by, ...)."""
    if x.ndim == 4:
        return F.pixel_unshuffle(x, by)
    axes = x.ndim - 2
    parts = x.reshape(*x.shape[:2], *(n for side in x.shape[2:] for n in (side // by, by)))
    inner, outer = range(3, 3 + 2 * axes, 2), range(2, 2 + 2 * axes, 2)
    return parts.permute(0, 1, *inner, *outer).reshape(len(x), -1, *(side // by for side in x.shape[2:]))


def unfolded(x: Tensor, by: int) -> Tensor:
    """The inverse of `folded`."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, by)
    axes = x.ndim - 2
    parts = x.reshape(len(x), -1, *(by,) * axes, *x.shape[2:])
    order = [n for axis in range(axes) for n in (2 + axes + axis, 2 + axis)]
    return parts.permute(0, 1, *order).reshape(len(x), parts.shape[1], *(side * by for side in x.shape[2:]))


def _require_sides(sides: tuple[int, ...], unit: int) -> None:
    if len(sides) not in CONVOLUTIONS:
        what = "vectors, choose network mlp" if not sides else f"samples of {len(sides)} axes"
        raise ValueError(f"this U-Net is of signals, images and volumes, the data are {what}")
    if any(side % unit for side in sides):
        shown = sides[0] if len(sides) == 2 and sides[0] == sides[1] else "x".join(map(str, sides))
        images = "set image_size" if len(sides) == 2 else "crop or pad them, or choose fewer widths or fold=1"
        raise ValueError(f"this U-Net needs samples whose sides are multiples of {unit}, not {shown}: {images}")
