"""What both networks share: the conditioning vector, the norm, and the rule that the edges stay float32."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat.tensors import PreciseModule

M = TypeVar("M", bound=nn.Module)


def fixed(table: Callable[[], Tensor]) -> Tensor:
    """What a buffer holds, computed on the CPU wherever the network is made: on "meta", arithmetic would load the compiler."""
    device = torch.get_default_device()
    with torch.device("cpu"):
        made = table()
    return made.to(device)


class Fourier(PreciseModule):
    """sin and cos of t at 16 frequencies from 1 to 100, (B,) -> (B, 32), float32: a cast network keeps them exact."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        frequencies = fixed(lambda: torch.exp(torch.linspace(0, math.log(100.0), 16)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.unsqueeze(1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Embedding(nn.Module):
    """Time and class label as one vector: an MLP of Fourier features of t, plus a learned vector per class.

    Args:
        width: of the vector.
        classes: number of classes; index `classes` is the null class of unlabelled samples. None has no labels.
    """

    def __init__(self, width: int, classes: int | None) -> None:
        super().__init__()
        self.classes, self.fourier = classes, Fourier()
        self.mlp = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        if classes is not None:
            self.label = nn.Embedding(classes + 1, width)
            nn.init.normal_(self.label.weight, std=0.5)

    def forward(self, t: Tensor, label: Tensor | None) -> Tensor:
        """Times (B,) and labels (B,), None for all unlabelled -> (B, width)."""
        vector: Tensor = self.mlp(self.fourier(t).to(self.mlp[0].weight.dtype))
        if self.classes is not None:
            null = label if label is not None else torch.full(t.shape, self.classes, device=t.device, dtype=torch.long)
            vector = vector + self.label(null)
        elif label is not None:
            raise ValueError("this network has no classes: build it with classes=... or leave label out")
        return F.silu(vector)


def rms_norm(x: Tensor, dim: int) -> Tensor:
    """x / sqrt(mean(x²)) over one axis, statistics in float32 (Zhang & Sennrich 2019); scale and shift come from FiLM."""
    return x * torch.rsqrt(x.float().square().mean(dim, keepdim=True) + 1e-5).to(x.dtype)


def zeroed(module: M) -> M:
    """The module with all parameters zero: a residual branch that starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def to_body(x: Tensor) -> Tensor:
    """Cast what the float32 first layer made to the dtype of the autocast body, so that the residual stream has it too."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def float32_edge(device: torch.device) -> torch.autocast:
    """The first and the last layer run here: in bf16 a noise level of 0.001 would be rounded away."""
    return torch.autocast(device.type, enabled=False)
