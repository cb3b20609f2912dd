"""A small diffusion transformer (Peebles & Xie 2023) with the usual refinements: RMS norm, normalized queries and keys."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat.budgets import require_at_most
from xhat.networks.layers import Embedding, fixed, float32_edge, rms_norm, to_body, zeroed
from xhat.registry import NETWORKS


class Block(nn.Module):
    """Attention and an MLP, each scaled, shifted and gated by the conditioning vector; the gates are zero at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(e).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attention(rms_norm(x, -1) * (1 + scale1) + shift1)
        h = self.expand(rms_norm(x, -1) * (1 + scale2) + shift2)
        out: Tensor = x + gate2 * self.reduce(F.silu(h))
        return out

    def attention(self, x: Tensor) -> Tensor:
        """Multi-head self-attention over tokens, (B, N, D) -> (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rms_norm(q, -1), rms_norm(k, -1)
        if x.device.type == "cpu":  # for a few dozen tokens twice as fast as the fused kernel there
            mixed = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1).to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.mix(mixed.transpose(1, 2).flatten(2))
        return out


@NETWORKS.named("dit")
class DiT(nn.Module):
    """Patches as tokens, transformer blocks conditioned by adaLN-zero, a linear map back to pixels, zero at first.

    Called as net(z (B, C, H, W), t (B,), label (B,) or None) -> (B, outputs, H, W).

    Args:
        channels: of the images.
        outputs: of the network; by default as many as channels.
        size: side of the images, or their height and width, multiples of patch.
        classes: number of class labels; None is unconditional.
        patch: side of a patch.
        width: of a token.
        depth: number of blocks.
        heads: of the attention.
        bottleneck: numbers that a patch is first told in, before `width`; None is none. Large patches have more values than a
            digit or an image has dimensions there (Li & He 2025, JiT, section 4.2, with 32 to 512 of 768).
    """

    positions: Tensor

    def __init__(
        self,
        channels: int = 1,
        outputs: int | None = None,
        size: int | tuple[int, ...] = 28,
        classes: int | None = None,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        bottleneck: int | None = None,
    ) -> None:
        super().__init__()
        require_at_most(1000, depth=depth)
        require_at_most(65_536, width=width, patch=patch)
        sides = size if isinstance(size, tuple) else (size, size)
        if len(sides) != 2:
            raise ValueError(
                f"this DiT is of images, the data have {len(sides)} axes: choose network {'unet' if sides else 'mlp'}"
            )
        if sides[0] % patch or sides[1] % patch:
            raise ValueError(
                f"this DiT needs images whose sides are multiples of its patch {patch}, not {size}: set image_size"
            )
        if width % (4 * heads):
            raise ValueError(f"width must be a multiple of 4 · heads = {4 * heads}, got {width}")
        self.channels, self.classes, self.patch = channels, classes, patch
        self.grid = (sides[0] // patch, sides[1] // patch)
        self.embedding = Embedding(width, classes)
        self.first: nn.Module = nn.Linear(channels * patch**2, width)
        if bottleneck is not None:
            if bottleneck < 1:
                raise ValueError(f"a bottleneck lets 1 number or more through, got bottleneck={bottleneck}")
            require_at_most(65_536, bottleneck=bottleneck)
            self.first = nn.Sequential(nn.Linear(channels * patch**2, bottleneck, bias=False), nn.Linear(bottleneck, width))
        self.register_buffer("positions", fixed(partial(sine_positions, *self.grid, width)), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, (outputs or channels) * patch**2))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        with float32_edge(z.device):
            x = self.first(F.pixel_unshuffle(z, self.patch).flatten(2).transpose(1, 2)) + self.positions
        x, e = to_body(x), self.embedding(t, label)
        for block in self.blocks:
            x = block(x, e)
        scale, shift = self.modulation(e).unsqueeze(1).chunk(2, dim=-1)
        x = rms_norm(x, -1) * (1 + scale) + shift
        with float32_edge(z.device):
            x = self.last(x.to(self.last.weight.dtype))
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.patch)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weights that map hidden channels to hidden channels, for optimizers that treat matrices apart."""
        inner = [m for b in self.blocks for m in b.children() if isinstance(m, nn.Linear) and m is not b.modulation]
        return [m.weight for m in inner if isinstance(m.weight, nn.Parameter)]


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed two-dimensional sines and cosines, (rows · columns, width): half of the width for rows, half for columns."""
    frequencies = torch.exp(-math.log(100.0) * torch.arange(width // 4) / (width // 4))

    def line(count: int) -> Tensor:
        angles = torch.arange(count).unsqueeze(1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    down, across = line(rows).unsqueeze(1).expand(-1, columns, -1), line(columns).unsqueeze(0).expand(rows, -1, -1)
    return torch.cat([down, across], dim=-1).flatten(0, 1)
