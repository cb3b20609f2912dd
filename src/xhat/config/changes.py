"""Configs that are changed by dotted keys, laid over each other, and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from xhat.config.config import Config
from xhat.config.options import is_among
from xhat.errors import ConfigError

NAMED = ("terms", "watch")
"""Sections whose keys the user chooses: given as a whole, one takes the place of what was there."""


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config with others in some places.

    Args:
        values: of a config; they stay as they are.
        changes: dotted key -> value, such as {"optimizer.lr": 1e-3, "terms.smooth.weight": 0.5}; later ones count. A mapping
            is laid over the section that is there, but all `terms` given together replace those that were there.

    Raises:
        ConfigError: a key leads into a plain value.
    """
    changed = dict(values)
    for key, value in changes.items():
        changed = _changed(changed, key, key.split("."), value)
    return changed


def _changed(values: Mapping[str, Any], key: str, path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    there = values.get(first, {})
    if rest and not isinstance(there, Mapping):
        raise ConfigError(f"{key}: {'.'.join(key.split('.')[: -len(rest)])} has no keys of its own: give it one value")
    if rest:
        value = _changed(there, key, rest, value)
    elif key not in NAMED and isinstance(there, Mapping) and isinstance(value, Mapping):
        value = overlaid(there, value)
    return {**values, first: value}


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values overlaid by others, mappings key by key: the terms of both are kept."""
    both = {
        k: overlaid(below[k], above[k]) for k in above if isinstance(below.get(k), Mapping) and isinstance(above[k], Mapping)
    }
    return {**below, **above, **both}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def changed_values(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> value in a, value in b, where they differ; "absent" for a key that only the other has."""
    first, second = flat(asdict(a)), flat(asdict(b))
    values = {k: (first.get(k, "absent"), second.get(k, "absent")) for k in {**first, **second}}
    return {k: (x, y) for k, (x, y) in values.items() if x != y}


def differences(a: Config, b: Config, ignored: Sequence[str] = ()) -> list[str]:
    """Lines "key: value of a there, value of b here" for the values in which two configs differ.

    Args:
        a: a config.
        b: another.
        ignored: keys, and sections, that may differ.
    """
    found = {k: v for k, v in changed_values(a, b).items() if not is_among(k, ignored)}
    return [f"{key}: {there} there, {here} here" for key, (there, here) in found.items()]
