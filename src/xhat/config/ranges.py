"""The range of a number in a config, said where its field is declared and checked in one place."""

import sys
from dataclasses import field, fields, is_dataclass
from typing import Any

from xhat.errors import ConfigError

RANGE, FINITE, COUNT = "range", sys.float_info.max, 2**53
"""Where a field keeps its range; the largest number, and the largest that counts something."""


def within(default: Any, low: float, high: float = FINITE) -> Any:
    """A dataclass field whose number, or each of whose numbers, is at least `low` and at most `high`; None is no number."""
    return field(default=default, metadata={RANGE: (low, high)})


def require_in_range(config: Any, prefix: str = "") -> None:
    """Check all numbers of a dataclass, those of the dataclasses in it included; NaN is in no range.

    Args:
        config: a dataclass instance.
        prefix: of its keys in errors.

    Raises:
        ConfigError: names the first key whose number is out of range.
    """
    for f in fields(config):
        key, value = f"{prefix}{f.name}", getattr(config, f.name)
        for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if is_dataclass(inner):
                require_in_range(inner, f"{key}.{name}." if name else f"{key}.")
        if RANGE in f.metadata:
            _require(key, value, *f.metadata[RANGE])


def _require(key: str, value: Any, low: float, high: float) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise ConfigError(f"{key} must be {_said(low, high)}, got {number}")


def _said(low: float, high: float) -> str:
    if low == -FINITE:
        return "a finite number"
    return f"at least {low:g}" if high > 1e9 else f"in [{low:g}, {high:g}]"
