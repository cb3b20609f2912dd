"""A data set: uint8 images, in memory or not, and their labels."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from xhat.data.scale import EIGHT_BITS, Range
from xhat.data.stack import Samples, parts_of, view_of
from xhat.errors import DataError

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
        pixels: uint8 (N, C, H, W), a tensor or a `Stack` that reads what is asked for; of data that are no 8-bit images
            float32 (N, ...), as the network sees them.
        labels: int64 (N,), or None.
        classes: number of classes; 0 without labels.
        name: for messages.
        names: of the classes; empty where they are called 0, 1, ....
        found: what was found while reading them.
        cond: what else the network is told of each, (N, ...) by name.
    """

    pixels: Samples
    labels: Tensor | None
    classes: int
    name: str
    names: tuple[str, ...] = ()
    found: Found = Found()
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if 0 in self.pixels.shape:
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
        found = 0
        for part in parts_of(self.pixels):
            found = zlib.crc32(part.contiguous().numpy().data, found)
        return f"{tuple(self.pixels.shape)} {found:08x}"

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """Lowest and highest value of all pixels."""
        found = [part.aminmax() for part in parts_of(self.pixels)]
        return min(float(low) for low, _ in found), max(float(high) for _, high in found)

    def labels_fingerprint(self) -> str:
        """The same for the same labels and class names; empty without labels."""
        if self.labels is None:
            return ""
        names = "\0".join(self.class_names).encode()
        return f"{zlib.crc32(names, zlib.crc32(self.labels.contiguous().numpy().data)):08x}"

    def chosen(self, index: Tensor) -> "Images":
        """Images number `index`, in memory."""
        return self._with(self.pixels[index], index)

    def view(self, index: Tensor) -> "Images":
        """Images number `index`, none of which is copied."""
        return self._with(view_of(self.pixels, index), index)

    def _with(self, pixels: Samples, index: Tensor) -> "Images":
        cond = {name: value[index] for name, value in self.cond.items()}
        labels = None if self.labels is None else self.labels[index]
        return replace(self, pixels=pixels, labels=labels, cond=cond)

    def __len__(self) -> int:
        return len(self.pixels)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1]; what is float already stays."""
    if pixels.is_floating_point():
        return pixels
    return pixels.float().mul_(1 / 127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] (clamped) -> uint8 0..255, rounded."""
    return images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
