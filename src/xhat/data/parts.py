"""The parts of a data source, and its images and labels as a network knows them."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from xhat.data.aside import aside
from xhat.data.images import Images
from xhat.data.load import load
from xhat.data.shape import DataShape
from xhat.data.size import Size
from xhat.data.stack import Stack
from xhat.errors import UsageError


class Parts(NamedTuple):
    """The images of a data source.

    Attributes:
        train: to train on.
        held_out: to measure on: the source's test part, or a share that was set aside; None if there are too few images.
    """

    train: Images
    held_out: Images | None


def load_parts(
    data: str,
    size: int | str | Size | None = None,
    held_out: float = 0.0,
    *,
    skip: bool = False,
    say: Callable[[str], None] | None = None,
) -> Parts:
    """The images to train on, and others of the same data to measure on: their test part, or a share that is set aside.

    Args:
        data: as for `load`.
        size: as for `load`.
        held_out: share to set aside; if it comes to too few images there are none, see `set_aside`.
        skip: as for `load`.
        say: as for `load`.

    Raises:
        DataError: as for `load`.
    """
    images = load(data, size, skip=skip, say=say)
    if images.found.part == "train" and (test := load(data, size, "test")).is_test_set:
        return Parts(images, test)
    return set_aside(images, held_out)


def set_aside(images: Images, share: float) -> Parts:
    """The images to train on, and a random share of them, at most 1,000, that is kept from training; see `aside`."""
    kept, out = aside(len(images), share, images.labels)
    return Parts(images, None) if out is None else Parts(images.view(kept), images.chosen(out))


def labels_for(images: Images, shape: DataShape) -> Tensor | None:
    """The labels (N,) that a network of this shape is told with the images.

    Their own, numbered as the network's classes are, of which other data may have fewer; the null class, number `classes`,
    where they have none; None if the network takes none.

    Raises:
        UsageError: the images have classes that the network does not know.
    """
    if shape.classes is None:
        return None
    if images.labels is None:
        return torch.full((len(images),), shape.classes)
    number = {name: k for k, name in enumerate(shape.class_names)}
    unknown = [name for name in images.class_names if name not in number]
    if unknown:
        few = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise UsageError(f"{images.name} has classes that the run does not know: {few}")
    return torch.tensor([number[name] for name in images.class_names])[images.labels]


def in_channels(images: Images, channels: int) -> Images:
    """The images with so many channels: grey ones are repeated as colour ones.

    Raises:
        UsageError: they have colours, and another number of channels is asked for.
    """
    found = images.pixels.shape[1]
    if found not in (1, channels):
        raise UsageError(f"{images.name} has {found} channels, the run was trained on {channels}")
    if found == channels:
        return images
    pixels = images.pixels
    if isinstance(pixels, Stack):
        sample = (channels, *pixels.shape[2:])
        return replace(images, pixels=pixels.each(lambda part: part.expand(-1, *sample).contiguous(), sample, pixels.dtype))
    return replace(images, pixels=pixels.expand(-1, channels, -1, -1).contiguous())
