"""Data sources of what people have: tensors, a torch Dataset, an iterable of batches."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from xhat.data.batch import Batch, Extra, chosen_rows, require_rows
from xhat.data.reading import one_sample, together
from xhat.data.rows import Rows, checksum, rows_with_held_out
from xhat.data.shape import PIXELS, DataShape
from xhat.data.source import DataSource
from xhat.data.stream import Stream
from xhat.errors import DataError, first_line, with_kind

HELD_OUT, LOOKED_AT = 0.05, 16
"""The share of samples that is measured on, and how many samples of a Dataset its fingerprint looks at."""

Read = Callable[[Any], Any]


def from_tensors(
    x0: Tensor | np.ndarray,
    cond: Mapping[str, Tensor] | None = None,
    extra: Extra | None = None,
    *,
    held_out: float = HELD_OUT,
    seed: int = 0,
    value_range: tuple[float, float] | None = None,
    classes: int | None = None,
    name: str = "tensors",
) -> Rows:
    """Samples in memory.

    Args:
        x0: (N, ...): vectors (N, D), signals (N, C, L), images (N, C, H, W), volumes (N, C, D, H, W); uint8 pixels, or floats
            that the network sees as they are.
        cond: what the network is told of each, (N, ...) by name.
        extra: what terms and penalties see of each.
        held_out: share that is set aside to measure on; fewer than 16 are none.
        seed: of the order.
        value_range: lowest and highest value that x0 can have, (-1, 1) for pictures; uint8 pixels know theirs.
        classes: number of the classes in cond["label"]; by default one more than the largest there.
        name: for messages.

    Raises:
        DataError: no samples, or conditions and extras of other length.
    """
    values = _tensor(x0, f"{name}: x0")
    if values.ndim < 2:
        raise DataError(f"{name}: x0 {tuple(values.shape)} must be (N, ...), a vector or more for each sample")
    values = values if values.dtype == torch.uint8 else values.float()
    for what, those in (("cond", cond), ("extra", extra)):
        try:
            require_rows(those, len(values), what)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from None
    told = None if cond is None else {key: _tensor(value, f'{name}: cond["{key}"]') for key, value in cond.items()}
    label = (told or {}).get("label")
    if label is not None and classes is None and label.ndim == 1 and not label.is_floating_point():
        if int(label.min()) < 0:
            raise DataError(f'{name}: cond["label"] goes down to {int(label.min())}: number the classes from 0')
        classes = int(label.max()) + 1

    def at(index: Tensor) -> Batch:
        return Batch(values[index], *(chosen_rows(those, index, len(values)) for those in (told, extra)))

    shape = DataShape.of(
        tuple(values.shape[1:]),
        classes,
        range=PIXELS if values.dtype == torch.uint8 else value_range,
        conditions=tuple(key for key in told or () if key != "label" or classes is None),
    )
    mark = checksum(values, told, extra)
    labels = label if classes is not None and label is not None and label.ndim == 1 else None
    rows = rows_with_held_out(at, len(values), mark, name, share=held_out, seed=seed, shape=shape, labels=labels)
    rows.constant = True
    return rows


def from_dataset(
    dataset: Any, read: Read | None = None, *, held_out: float = HELD_OUT, seed: int = 0, name: str | None = None
) -> Rows:
    """A data set whose samples have numbers: a torch Dataset, one of Hugging Face, a list.

    Args:
        dataset: len(dataset) samples, dataset[k] each.
        read: one sample of it -> x0 (C, ...), or (x0, label), or Batch(x0, cond, extra) of one sample; by default as it is.
        held_out: as of `from_tensors`.
        seed: of the order.
        name: for messages.

    Raises:
        DataError: it is empty, or a sample is nothing that can be read.
    """
    called = name or type(dataset).__name__

    def one(number: int) -> Batch:
        item = dataset[number]
        return one_sample(item if read is None else read(item), called)

    def at(index: Tensor) -> Batch:
        try:
            return together([one(number) for number in index.tolist()])
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{called}: a sample cannot be read: {with_kind(error)}") from error

    length = len(dataset)
    if not length:
        raise DataError(f"{called} holds no samples")
    looked = torch.linspace(0, length - 1, min(LOOKED_AT, length)).long()
    first, again = (_looked_at(at, looked, seed) for seed in (0, 1))
    # samples that come out otherwise each time, augmented ones, are known by their number and shape alone
    mark = f"{length} {first if first == again else 'augmented'}"
    return rows_with_held_out(at, length, mark, called, share=held_out, seed=seed)


def from_iterable(
    batches: Iterable[Any] | Callable[[], Iterator[Any]], read: Read | None = None, *, name: str | None = None
) -> Stream:
    """Batches that come one after the other: a DataLoader, or a function that makes an iterator. See `Stream`.

    Args:
        batches: iterated again for each epoch; items are x0 (B, ...), (x0, label) or `Batch`, of any number of samples.
        read: an item -> one of these; by default as it is.
        name: for messages.

    Raises:
        DataError: they can be iterated only once.
    """
    return Stream(batches, read, name=name)


def as_source(data: Any, held_out: float = HELD_OUT) -> DataSource:
    """A data source of whatever it is: one already, a tensor or an array, a Dataset, an iterable of batches.

    Args:
        data: see above.
        held_out: share of a tensor's or a Dataset's samples to set aside.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(data, DataSource):
        return data
    if isinstance(data, Tensor | np.ndarray):
        return from_tensors(data, held_out=held_out)
    if isinstance(data, DataLoader):
        return Stream(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping | str):
        return from_dataset(data, held_out=held_out)
    if isinstance(data, Iterable) and not isinstance(data, Mapping | str):
        return Stream(data)
    raise DataError(
        f"{type(data).__name__} is no data: give a tensor, a Dataset, an iterable of batches, or an object with "
        "get(step, shard, rows) and fingerprint()"
    )


def _tensor(values: Any, name: str) -> Tensor:
    """Numbers as a tensor.

    Raises:
        DataError: they are none, or complex.
    """
    try:
        found = torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} are no numbers: {first_line(error)}") from None
    if found.is_complex() or found.layout != torch.strided:
        what = "complex: give real and imaginary part as two channels" if found.is_complex() else "sparse: make it dense"
        raise DataError(f"{name} is {what}")
    return found


def _looked_at(at: Callable[[Tensor], Batch], index: Tensor, seed: int) -> str:
    """A checksum of some samples, the global random numbers of which start from a seed and are put back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            seen = at(index)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
    return checksum(seen.x0, seen.cond, seen.extra)
