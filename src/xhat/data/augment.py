"""Samples that training sees in another way each time: mirrored, moved, cropped; counted, and never those that are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from xhat import rng
from xhat.data.batch import Batch
from xhat.data.images import to_float, to_uint8
from xhat.data.over import Over
from xhat.data.source import DataSource
from xhat.errors import ConfigError, DataError
from xhat.registry import AUGMENTATIONS
from xhat.rng import Shard


class Augmentation(Protocol):
    """Samples (B, C, ...), and (B, 3) numbers in [0, 1), all that is random about them -> samples of the same type."""

    def __call__(self, x0: Tensor, chance: Tensor) -> Tensor: ...


@AUGMENTATIONS.register
@dataclass(frozen=True)
class flip:
    """Mirror the last axis, left and right of images, of a share of the samples.

    Args:
        share: that is mirrored.
    """

    share: float = 0.5

    def __call__(self, x0: Tensor, chance: Tensor) -> Tensor:
        mirrored = chance[:, 0] < self.share
        return torch.where(mirrored.reshape(-1, *(1,) * (x0.ndim - 1)), x0.flip(-1), x0)


@AUGMENTATIONS.register
@dataclass(frozen=True)
class shift:
    """Move along each axis by up to so many places, all alike; what is moved in repeats the edge.

    Args:
        most: places, a whole number.
    """

    most: int = 2

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"shift({self.most}): give how many places at most, 1 or more")

    def __call__(self, x0: Tensor, chance: Tensor) -> Tensor:
        _require_axes(x0, "shift", range(1, 4))
        for axis in range(2, x0.ndim):
            moved = (chance[:, axis - 2] * (2 * self.most + 1)).floor().long() - self.most
            side = x0.shape[axis]
            places = (torch.arange(side) - moved.unsqueeze(1)).clamp(0, side - 1)
            shape = [len(x0)] + [side if a == axis else 1 for a in range(1, x0.ndim)]
            x0 = x0.gather(axis, places.reshape(shape).expand_as(x0))
        return x0


@AUGMENTATIONS.register
@dataclass(frozen=True)
class crop:
    """A part of an image, somewhere in it, resized to its size (bilinear).

    Args:
        least: side of the part as a share of the image's, between this and 1, all alike.
    """

    least: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise ConfigError(f"crop({self.least}): the least share of a side lies in (0, 1]")

    def __call__(self, x0: Tensor, chance: Tensor) -> Tensor:
        _require_axes(x0, "crop", (2,))
        side = self.least + (1 - self.least) * chance[:, 0]
        zero, middle = torch.zeros_like(side), (1 - side).unsqueeze(1) * (2 * chance[:, 1:3] - 1)
        rows = torch.stack([torch.stack([side, zero, middle[:, 0]], 1), torch.stack([zero, side, middle[:, 1]], 1)], 1)
        values = to_float(x0)
        grid = F.affine_grid(rows.to(values), list(x0.shape), align_corners=False)
        found = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return to_uint8(found) if x0.dtype == torch.uint8 else found


def _require_axes(x0: Tensor, name: str, known: Sequence[int]) -> None:
    if x0.ndim - 2 not in known:
        raise DataError(f"augment: {name} is not of samples {tuple(x0.shape[1:])}: leave it out")


class Augmented(Over):
    """A source whose samples are augmented; what is held out is not.

    Which way is a function of (seed, step, sample).

    Args:
        source: of the samples.
        ways: one after the other.
        seed: of the choice.
    """

    def __init__(self, source: DataSource, ways: Sequence[Augmentation], seed: int = 0) -> None:
        super().__init__(source)
        self.ways, self.seed = tuple(ways), seed

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`.

        Raises:
            DataError: the samples have other axes, or something comes with them that would have to be augmented alike.
        """
        batch = self.source.get(step, shard, rows)
        for name, value in (batch.extra or {}).items():
            if isinstance(value, Tensor) and value.ndim > 2 and value.shape[-1] == batch.x0.shape[-1]:
                raise DataError(
                    f'augment: {self.name} gives extra["{name}"] beside the samples, which would no longer fit them'
                )
        x0 = batch.x0
        for number, way in enumerate(self.ways):
            chance = torch.rand(shard.total, 3, generator=rng.generator(self.seed, "augment", number, step))
            x0 = way(x0, chance[shard.first : shard.first + rows])
        return batch._replace(x0=x0)
