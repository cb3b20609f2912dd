"""Samples that lie on the device that trains: of a step only their numbers travel."""

from collections.abc import Iterator

import torch
from torch import Tensor

from xhat.data.batch import Batch, bytes_in
from xhat.data.null import WithNull
from xhat.data.over import over_inner
from xhat.data.rows import Rows
from xhat.data.source import DataSource
from xhat.data.stack import PART
from xhat.tensors import to_device

SHARE = 1 / 8
"""Of the free memory of a device, that data may take."""


class OnDevice(Rows):
    """Rows whose samples, and what the network is told of them, are on a device.

    Args:
        rows: whose samples are the same each time that they are read.
        first: their first sample, as a batch.
        device: where they go.
    """

    def __init__(self, rows: Rows, first: Batch, device: torch.device) -> None:
        self.device = device
        self.x0, self.cond = _room(first.x0, len(rows), device), {}
        for name, value in (first.cond or {}).items():
            self.cond[name] = _room(value, len(rows), device)
        for index in _parts(len(rows), bytes_in(first)):
            batch, place = rows.at(index), slice(int(index[0]), int(index[-1]) + 1)
            self.x0[place].copy_(batch.x0)
            for name, value in (batch.cond or {}).items():
                self.cond[name][place].copy_(value)
        super().__init__(self._at, len(rows), rows.mark, rows.order, rows.name, rows.shape, rows.held_out)

    def _at(self, index: Tensor) -> Batch:
        chosen = to_device(index, self.device)
        return Batch(self.x0[chosen], {name: value[chosen] for name, value in self.cond.items()} or None)


def on_device(source: DataSource, device: torch.device, free: int) -> DataSource:
    """A source whose samples are on the device, if they are the same each time and fit there; else the source as it is.

    Args:
        source: of the training.
        device: that trains.
        free: bytes of its memory.
    """

    def inner(rows: DataSource) -> DataSource:
        if not (isinstance(rows, Rows) and rows.constant):
            return rows
        first = rows.at(torch.zeros(1, dtype=torch.int64))
        plain = first.extra is None and all(isinstance(value, Tensor) for value in (first.cond or {}).values())
        return OnDevice(rows, first, device) if plain and bytes_in(first) * len(rows) <= SHARE * free else rows

    return over_inner(source, inner, WithNull)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, for data beside the training; none of other devices, whose memory data are in already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _room(one: Tensor, n: int, device: torch.device) -> Tensor:
    return torch.empty(n, *one.shape[1:], dtype=one.dtype, device=device)


def _parts(n: int, size: int) -> Iterator[Tensor]:
    """Numbers of as many samples at a time as are read in one go."""
    yield from torch.arange(n).split(max(1, PART // max(1, size)))
