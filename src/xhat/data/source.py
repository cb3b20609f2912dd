"""What a data source is, and how a network gets its batches: checked, in float32, on its device."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor

from xhat.data.batch import Batch, has_parts, require_rows
from xhat.data.images import to_float
from xhat.data.layers import layers
from xhat.data.lost import lost_of
from xhat.data.shape import PIXELS, DataShape
from xhat.errors import DataError, with_kind
from xhat.rng import Shard
from xhat.tensors import to_device

PROBED = 2
"""Samples that are asked for to see what a source gives."""


@runtime_checkable
class DataSource(Protocol):
    """Where samples come from: any object with these two methods.

    A source may also say what it knows, in attributes: `range`, (low, high) of its values; `classes`, how many there are of the
    condition "label", and `class_names`; `held_out`, another source to measure on; `name`, for messages; `__len__`, how many
    different samples it has.
    """

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """Samples number shard.first, ..., shard.first + rows - 1 of the shard.total samples of a training step.

        They are a function of the arguments alone: the same on one process and on many, and after a resume.
        """
        ...

    def fingerprint(self) -> str:
        """The same for the same data, another for others: a run is resumed with no others."""
        ...


def name_of(source: object) -> str:
    """What messages call a source."""
    return str(getattr(source, "name", "") or type(source).__name__)


def fingerprint_of(source: DataSource) -> str:
    """What tells the data of a source from others.

    Raises:
        DataError: it fails to say, or says no text.
    """
    try:
        found = source.fingerprint()
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the data source {name_of(source)} failed at fingerprint(): {with_kind(error)}") from error
    if not isinstance(found, str):
        raise DataError(f"the data source {name_of(source)}: fingerprint() returns text, got a {type(found).__name__}")
    return found


def shape_of(source: DataSource) -> DataShape:
    """What a source says of its data, or what its first samples look like.

    Raises:
        DataError: they cannot be had, or are none.
    """
    known = getattr(source, "shape", None)
    if isinstance(known, DataShape):
        return known
    if length_of(source) == 0:
        raise DataError(f"{name_of(source)} holds no samples")
    x0, cond, _ = asked(source, 0, Shard(0, PROBED), PROBED)
    told, classes = tuple(cond or ()), getattr(source, "classes", None)
    try:
        reach = getattr(source, "range", None)
        span = None if reach is None else (float(reach[0]), float(reach[1]))
        names = tuple(map(str, getattr(source, "class_names", None) or ()))
        classes = None if classes is None else int(classes)
    except (IndexError, TypeError, ValueError) as error:
        what = "range is (low, high), classes a number, class_names a list"
        raise DataError(f"the data source {name_of(source)}: {what}: {error}") from None
    return DataShape.of(
        tuple(x0.shape[1:]),
        classes if "label" in told else None,
        names=names,
        range=PIXELS if x0.dtype == torch.uint8 else span,
        conditions=tuple(name for name in told if name != "label" or classes is None),
    )


def asked(source: DataSource, step: int, shard: Shard, rows: int) -> Batch:
    """The batch of a source, looked at.

    Raises:
        DataError: it is none, or has other rows than were asked for.
    """
    name = name_of(source)
    try:
        found: Any = source.get(step, shard, rows)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the data source {name} failed at get({step}, {shard}, {rows}): {with_kind(error)}") from error
    batch = found if isinstance(found, Batch) else Batch(*found) if isinstance(found, tuple) and 0 < len(found) <= 3 else None
    if batch is None or not isinstance(batch.x0, Tensor) or not batch.x0.ndim > 1:
        raise DataError(f"the data source {name} gave a {_said(found)}: get returns Batch(x0, cond, extra), x0 (rows, ...)")
    if not (batch.x0.is_floating_point() or batch.x0.dtype == torch.uint8):
        raise DataError(f"the data source {name} gave x0 as {batch.x0.dtype}: give float32 values, or uint8 pixels")
    if len(batch.x0) != rows:
        raise DataError(f"the data source {name} gave {len(batch.x0)} samples where {rows} were asked for: get returns `rows`")
    for what, values in (("cond", batch.cond), ("extra", batch.extra)):
        try:
            require_rows(values, rows, what)
        except ValueError as error:
            raise DataError(f"the data source {name}: {error}") from None
    return batch


def _said(found: object) -> str:
    return f"{type(found).__name__} of {len(found)}" if isinstance(found, tuple | list) else type(found).__name__


class Feed:
    """The batches of a source as an objective takes them.

    Args:
        source: where they come from.
        shape: that all of them must have, where the source names no others as its `samples`.
        device: where they go; uint8 pixels travel as such.
    """

    def __init__(self, source: DataSource, shape: DataShape, device: torch.device) -> None:
        self.source, self.shape, self.device = source, shape, device
        self.samples = {shape.sample, *said_of(source, "samples", ())}

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`.

        Raises:
            DataError: no batch, or samples of another shape.
        """
        batch = asked(self.source, step, shard, rows)
        if tuple(batch.x0.shape[1:]) not in self.samples:
            self._refuse(batch.x0)
        return Batch(self._float(batch.x0), self._moved(batch.cond), self._moved(batch.extra))

    @property
    def lost(self) -> Mapping[str, str]:
        """Samples that could not be read so far, on this process, each with why."""
        found = lost_of(self.source)
        return {} if found is None else found.names

    def _refuse(self, x0: Tensor) -> NoReturn:
        name, was = name_of(self.source), tuple(x0.shape[1:])
        raise DataError(f"the data source {name} gave samples {was} after samples {self.shape.sample}: all need one shape")

    def _float(self, x0: Tensor) -> Tensor:
        if x0.is_meta:  # a shape without values, of prompts without images
            return x0
        moved = to_device(x0, self.device)
        return to_float(moved) if moved.dtype == torch.uint8 else moved.float()

    def _moved(self, values: Any) -> Any:
        if values is None:
            return None
        return {name: self._there(value) for name, value in values.items()}

    def _there(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self._moved(value)
        if isinstance(value, tuple) and has_parts(value):
            return tuple(self._there(part) for part in value)
        return to_device(value, self.device) if isinstance(value, Tensor) else value


def said_of(source: DataSource, name: str, otherwise: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a source of several sizes, or the one that it wraps, says of itself: `samples`, their shapes; `firsts`, the steps
    that first show each.
    """
    return next((getattr(one, name) for one in layers(source) if hasattr(one, name)), otherwise)


def length_of(source: object) -> int | None:
    """How many different samples a source has; None where it does not say.

    Raises:
        DataError: it fails to say.
    """
    try:
        return len(source)  # type: ignore[arg-type]
    except (NotImplementedError, TypeError):  # a stream
        return None
    except Exception as error:
        raise DataError(f"the data source {name_of(source)} failed at len(): {with_kind(error)}") from error


def available(source: object, most: int) -> int:
    """How many samples there are, at most so many: those that a source says it has, or that a stream gives before it ends."""
    count: Callable[[int], int] | None = getattr(source, "available", None)
    if count is not None:
        return count(most)
    length = length_of(source)
    return most if length is None else min(most, length)


def first_samples(feed: Feed, most: int) -> Batch:
    """The first samples of a source, at most so many, and no more than it says that it has."""
    count = available(feed.source, most)
    return feed.get(0, Shard(0, count), count)
