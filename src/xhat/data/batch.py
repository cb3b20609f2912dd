"""What one call of a data source gives: clean samples, what the network is told of them, what else belongs to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

Extra = Mapping[str, Any]
"""Name -> something with one row for each sample: a tensor, an array, a list of prompts."""


class Batch(NamedTuple):
    """Some samples.

    Attributes:
        x0: clean samples (B, ...); uint8 pixels 0..255 stand for -1..1.
        cond: keyword arguments of the network, tensors (B, ...); None is none.
        extra: what terms and penalties see as `draw.extra`, and the network never: masks, pixels, prompts; one row a sample.
    """

    x0: Tensor
    cond: Mapping[str, Tensor] | None = None
    extra: Extra | None = None


def bytes_in(batch: Batch) -> int:
    """Of its samples, and of what the network is told of them."""
    return sum(value.numel() * value.element_size() for value in (batch.x0, *(batch.cond or {}).values()))


def has_parts(value: Any) -> bool:
    """Whether it is made of several values that have rows: a mapping, a tuple of tensors such as a ControlNet's residuals."""
    within = isinstance(value, tuple) and all(isinstance(part, Tensor | np.ndarray) or has_parts(part) for part in value)
    return isinstance(value, Mapping) or within


def has_rows(value: Any, rows: int) -> bool:
    """Whether it has so many rows, or is made of parts that may: no flag, no number, no embedding for all."""
    listed = isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)
    return has_parts(value) or (listed and len(value) == rows)


def rows_of(value: Any, index: Tensor, rows: int) -> Any:
    """Rows number `index` (n,) of anything that has so many rows, or of all its parts; what has none stays as it is."""
    if not has_rows(value, rows):
        return value
    if isinstance(value, Mapping):
        return chosen_rows(value, index, rows)
    if has_parts(value):
        return tuple(rows_of(part, index, rows) for part in value)
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, np.ndarray):
        return value[index.cpu().numpy()]
    return [value[row] for row in index.tolist()]


def chosen_rows(values: Mapping[str, Any] | None, index: Tensor, rows: int) -> dict[str, Any] | None:
    """`rows_of` each of several values; None stays None."""
    return None if values is None else {name: rows_of(value, index, rows) for name, value in values.items()}


def require_rows(values: Any, rows: int, what: str) -> None:
    """Refuse values that have another number of rows than there are samples.

    Args:
        values: a mapping of them by name, or None.
        rows: number of samples.
        what: they are, for the error: "extra".

    Raises:
        ValueError: names the first that does not fit.
    """
    if values is not None and not isinstance(values, Mapping):
        kind = type(values).__name__
        raise ValueError(f'{what} is a {kind}: give a mapping of names, such as {{"label": labels}}')
    for name, value in (values or {}).items():
        if has_parts(value):
            parts = value if isinstance(value, Mapping) else {str(i): part for i, part in enumerate(value)}
            require_rows(parts, rows, f'{what}["{name}"]')
            continue
        try:
            found = len(value)
        except TypeError:
            kind = type(value).__name__
            raise ValueError(f'{what}["{name}"] has no rows, it is a {kind}: give one for each sample') from None
        if found != rows:
            raise ValueError(f'{what}["{name}"] has {found} rows for {rows} samples: give one for each')
