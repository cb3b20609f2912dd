"""Samples that are found by number, as a data source: tensors, our images, any data set."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xhat.data.aside import aside
from xhat.data.batch import Batch, has_parts
from xhat.data.images import Images
from xhat.data.order import AsTheyAre, Order
from xhat.data.shape import DataShape
from xhat.errors import DataError
from xhat.rng import Shard
from xhat.tensors import bytes_of


class Visits(Protocol):
    """Which sample comes when."""

    def indices(self, position: int, count: int) -> Tensor:
        """Numbers of `count` samples from this position of the training on."""
        ...


class Rows:
    """A data source whose samples have numbers; training visits all of them each epoch.

    Args:
        at: numbers (n,) int64 -> their batch.
        length: how many samples there are.
        mark: the fingerprint.
        order: in which they are visited.
        name: for messages.

    Attributes:
        shape: what is known of the data; None is what the first samples look like.
        held_out: samples to measure on, if some were set aside.
        droppable: whether a config's label_dropout leaves out its labels now and then.
        constant: whether a sample is the same each time that it is read, so that it may be kept elsewhere.
    """

    droppable = False
    constant = False

    def __init__(
        self,
        at: Callable[[Tensor], Batch],
        length: int,
        mark: str,
        order: Visits,
        name: str,
        shape: DataShape | None = None,
        held_out: "Rows | None" = None,
    ) -> None:
        if length < 1:
            raise DataError(f"{name} holds no samples")
        self.at, self.length, self.mark, self.order = at, length, mark, order
        self.name, self.shape, self.held_out = name, shape, held_out

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`."""
        return self.at(self.order.indices(step * shard.total + shard.first, rows))

    def fingerprint(self) -> str:
        """As of `DataSource`."""
        return self.mark

    def __len__(self) -> int:
        return self.length


def rows_with_held_out(
    at: Callable[[Tensor], Batch],
    length: int,
    mark: str,
    name: str,
    *,
    share: float,
    seed: int,
    shape: DataShape | None = None,
    labels: Tensor | None = None,
) -> Rows:
    """Samples to train on in a fresh order each epoch, and a random share of them that is held out, in a fixed order.

    Args:
        at: numbers -> their batch.
        length: how many samples there are.
        mark: the fingerprint of all.
        name: for messages.
        share: to hold out; fewer than 16 are none, 1,000 are enough.
        seed: of the order.
        shape: see `Rows`.
        labels: of all, if they have some: see `aside`.
    """
    kept, out = aside(length, share, labels)
    held = None
    if out is not None:
        held = Rows(lambda index: at(out[index]), len(out), f"{mark} held out", AsTheyAre(len(out)), name, shape)
    return Rows(
        lambda index: at(kept[index]),
        len(kept),
        f"{mark} {len(kept)} in order {seed}",
        Order(len(kept), seed),
        name,
        shape,
        held,
    )


def images_as_rows(images: Images, told: bool, order: Visits, shape: DataShape) -> Rows:
    """Images in memory; their labels are the condition "label" where the network is told them."""

    def at(index: Tensor) -> Batch:
        labels = images.labels if told else None
        cond = {name: value[index] for name, value in images.cond.items()}
        cond |= {} if labels is None else {"label": labels[index]}
        return Batch(images.pixels[index], cond or None)

    mark = f"{images.fingerprint()} {images.labels_fingerprint()}" if told else images.fingerprint()
    rows = Rows(at, len(images), mark, order, images.name, shape)
    rows.constant = True
    return rows


def checksum(x0: Tensor, *others: Mapping[str, Any] | None) -> str:
    """The shape of samples, and a checksum of their values and of all that comes with them."""
    both = {name: value for values in others for name, value in _leaves(values or {}).items()}
    found = zlib.crc32(_bytes_of(x0))
    for name in sorted(both):
        found = zlib.crc32(_bytes_of(both[name]), zlib.crc32(name.encode(), found))
    return f"{tuple(x0.shape)} {found:08x}"


def _leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value, of values that are made of parts."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        parts = dict(enumerate(value)) if isinstance(value, tuple) and has_parts(value) else value
        found |= (
            _leaves({f"{name}.{key}": part for key, part in parts.items()}) if isinstance(parts, Mapping) else {name: value}
        )
    return found


def _bytes_of(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return bytes_of(torch.as_tensor(value))
    return "\0".join(map(str, value)).encode()
