"""A data set in memory: uint8 images and their labels, and the order in which training visits them."""

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from xhat.data.scale import EIGHT_BITS, Range
from xhat.errors import DataError
from xhat.rng import generator

MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Found:
    """What was found while reading images, for whoever uses them.

    Attributes:
        part: "train" or "test", where the data have such parts; "" if these are all the images.
        scale: values of the files that became 0 and 255.
        resized: number of images that were resized or cropped.
        unlabelled: why there are no labels, and what would give some.
        notes: what else is to be told, one line each.
    """

    part: Literal["", "train", "test"] = ""
    scale: Range = EIGHT_BITS
    resized: int = 0
    unlabelled: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images:
    """Images and labels.

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,), or None.
        classes: number of classes; 0 without labels.
        name: for messages.
        names: of the classes; empty where they are called 0, 1, ....
        found: what was found while reading them.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: int
    name: str
    names: tuple[str, ...] = ()
    found: Found = Found()

    def __post_init__(self) -> None:
        if self.pixels.numel() == 0:
            raise DataError(f"{self.name} holds no images")
        if self.classes > MOST_CLASSES:
            raise DataError(f"{self.name}: its labels make {self.classes:,} classes, at most {MOST_CLASSES:,} are possible")

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, `classes` of them."""
        return self.names or tuple(map(str, range(self.classes)))

    @property
    def is_test_set(self) -> bool:
        """Whether they are the test part of data that have one: as many as it takes for a distance of distributions."""
        return self.found.part == "test"

    def fingerprint(self) -> str:
        """Number, shape and checksum: the same for the same images in the same order."""
        return f"{tuple(self.pixels.shape)} {zlib.crc32(self.pixels.contiguous().numpy().data):08x}"

    def labels_fingerprint(self) -> str:
        """The same for the same labels and class names; empty without labels."""
        if self.labels is None:
            return ""
        names = "\0".join(self.class_names).encode()
        return f"{zlib.crc32(names, zlib.crc32(self.labels.contiguous().numpy().data)):08x}"

    def chosen(self, index: Tensor) -> "Images":
        """Images number `index`."""
        return replace(self, pixels=self.pixels[index], labels=None if self.labels is None else self.labels[index])

    def __len__(self) -> int:
        return len(self.pixels)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1]."""
    return pixels.float().mul_(1 / 127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] (clamped) -> uint8 0..255, rounded."""
    return images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class Order:
    """Which image is sample k of step n: a fresh permutation each epoch, a function of (seed, n, k) alone.

    Args:
        length: images in the data set.
        batch: samples per step, over all processes and micro-batches.
        seed: of the permutations.
    """

    def __init__(self, length: int, batch: int, seed: int) -> None:
        self.length, self.batch, self.seed = length, batch, seed
        self._epoch, self._permutation = -1, torch.empty(0)

    def indices(self, step: int, first: int, count: int) -> Tensor:
        """Images of samples first..first + count - 1 of this step, int64 (count,)."""
        position = step * self.batch + first
        parts = []
        while count > 0:
            epoch, offset = divmod(position, self.length)
            take = min(count, self.length - offset)
            parts.append(self._of(epoch)[offset : offset + take])
            position, count = position + take, count - take
        return torch.cat(parts)

    def _of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._permutation = torch.randperm(self.length, generator=generator(self.seed, "order", epoch))
            self._epoch = epoch
        return self._permutation
