"""Plain values in one file: JSON of a known type, with a checksum over all of it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from xhat.errors import DamagedError
from xhat.files.atomic import read_bytes, write_bytes
from xhat.files.seal import FORMAT, KEY, OPEN, require_sealed, sealed

HEAD = f'{{"format": "{FORMAT}", "{KEY}": "{OPEN}"'
MOST_BYTES = 256 * 2**20


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write values by name: dicts, lists and plain ones.

    Raises:
        OSError: see `write_bytes`.
    """
    data = f"{HEAD}{', ' if values else ''}{json.dumps(values)[1:]}".encode()
    write_bytes(path, *sealed(data))


def read_values(path: Path, kind: Any) -> Any:
    """The values of a file, of this type.

    Args:
        path: of the file.
        kind: what its content is: dataclasses, dicts, lists and plain types.

    Raises:
        DamagedError: it holds something else than was written.
        OSError: it cannot be read, whatever is in it.
    """
    data = read_bytes(path, MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DamagedError(f"it is larger than {MOST_BYTES / 2**20:g} MiB")
    values = plain_values(data)
    own = {"format", KEY}
    if isinstance(values, dict) and own & values.keys():  # others are of earlier versions
        require_sealed(data, len(HEAD))
        values = {key: value for key, value in values.items() if key not in own}
    return of_type(values, kind)


def plain_values(data: bytes | str) -> Any:
    """The values of a JSON text.

    Raises:
        DamagedError: it is none.
    """
    try:
        return json.loads(data)
    except (RecursionError, ValueError) as error:
        raise DamagedError(f"it is not JSON: {error}") from None


def of_type(values: Any, kind: Any) -> Any:
    """Plain values as the type says, checked through and through.

    Raises:
        DamagedError: they are of another; with the place.
    """
    try:
        return msgspec.convert(values, kind, str_keys=True)
    except (msgspec.ValidationError, RecursionError, TypeError) as error:
        raise DamagedError(str(error).replace("$.", "").replace(" - at `$`", "")) from None


def for_json(value: Any) -> Any:
    """The value with null for a number that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {key: for_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
