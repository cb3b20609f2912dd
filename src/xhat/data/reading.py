"""What somebody else's data give, as batches: samples put together, batches cut and joined."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from xhat.data.batch import Batch
from xhat.errors import DataError


def one_sample(item: Any, name: str) -> Batch:
    """One sample: x0 (C, ...), numbers and rows without an axis for the batch."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, tuple | list) and len(item) == 1:  # of a TensorDataset
        item = item[0]
    if isinstance(item, Tensor | np.ndarray):
        return Batch(torch.as_tensor(item))
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Tensor | np.ndarray):
        return Batch(torch.as_tensor(item[0]), {"label": torch.as_tensor(item[1])})
    raise DataError(
        f"{name} gives a {type(item).__name__} for a sample: pass read=, a function of it that returns x0, (x0, label) or "
        "Batch(x0, cond, extra)"
    )


def whole_batch(item: Any, name: str) -> Batch:
    """A batch: as of `one_sample`, every value with an axis for the batch."""
    found = one_sample(item, name)
    cond = None if found.cond is None else {key: torch.as_tensor(value) for key, value in found.cond.items()}
    return Batch(torch.as_tensor(found.x0), cond, found.extra)


def together(samples: list[Batch]) -> Batch:
    """Samples as one batch; what cannot be stacked, text among it, becomes a list."""
    x0 = torch.stack([torch.as_tensor(sample.x0) for sample in samples])
    names = [samples[0].cond or {}, samples[0].extra or {}]
    cond = {key: torch.stack([torch.as_tensor((s.cond or {})[key]) for s in samples]) for key in names[0]}
    extra = {key: _stacked([(s.extra or {})[key] for s in samples]) for key in names[1]}
    return Batch(x0, cond or None, extra or None)


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    return default_collate(values) if isinstance(values[0], Tensor | np.ndarray | int | float) else values


def part(batch: Batch, rows: slice) -> Batch:
    """Some of its samples."""
    cond, extra = (_sliced(values or {}, rows) for values in (batch.cond, batch.extra))
    return Batch(batch.x0[rows], cond or None, extra or None)


def _sliced(values: Any, rows: slice) -> Any:
    if isinstance(values, Mapping):
        return {key: _sliced(value, rows) for key, value in values.items()}
    return values[rows]


def joined(parts: list[Batch]) -> Batch:
    """Parts one after the other."""
    if len(parts) == 1:
        return parts[0]
    cond = {key: torch.cat([(p.cond or {})[key] for p in parts]) for key in parts[0].cond or {}}
    extra = {key: _cat([(p.extra or {})[key] for p in parts]) for key in parts[0].extra or {}}
    return Batch(torch.cat([p.x0 for p in parts]), cond or None, extra or None)


def _cat(values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: _cat([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return torch.cat(values) if isinstance(values[0], Tensor) else [row for value in values for row in value]
