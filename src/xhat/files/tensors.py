"""Tensors and texts in one file: safetensors, with a checksum over all of it."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from xhat.errors import DamagedError
from xhat.files.atomic import naming, write_bytes
from xhat.files.seal import FORMAT, KEY, OPEN, require_sealed, sealed

LENGTH = struct.Struct("<Q")
MOST_HEADER = 100_000_000
"""Bytes: what safetensors itself allows."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, which are copied to the CPU, and texts; what was there is replaced.

    Raises:
        OSError: see `write_bytes`.
    """
    data = save(apart(tensors), metadata={**metadata, "format": FORMAT, KEY: OPEN})
    write_bytes(path, *sealed(data, LENGTH.size + LENGTH.unpack_from(data)[0]))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Texts and tensors of a file, in memory: a mapped file that is cut later would be a bus error.

    Raises:
        DamagedError: it is no such file, or another than was written.
        OSError: it cannot be read, whatever is in it.
    """
    with naming(path), path.open("rb") as file:  # what a damaged header announces is not allocated
        _require_size(file.read(LENGTH.size), path.stat().st_size)
        file.seek(0)
        data = file.read()
    _require_size(data[: LENGTH.size], len(data))
    head = LENGTH.size + LENGTH.unpack_from(data)[0]
    try:
        metadata = json.loads(data[LENGTH.size : head]).get("__metadata__") or {}
        if metadata.get("format") == FORMAT or KEY in metadata:  # others are of earlier versions, or of other libraries
            require_sealed(data, head)
        return {str(key): str(value) for key, value in metadata.items()}, load(data)
    except DamagedError:
        raise
    except (SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"it is no safetensors file ({type(error).__name__})") from None


def _require_size(start: bytes, size: int) -> None:
    if len(start) < LENGTH.size or not 2 <= LENGTH.unpack(start)[0] <= min(size - LENGTH.size, MOST_HEADER):
        raise DamagedError("it is no safetensors file, or cut short")


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory: tied weights are written once under each of their names."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        own: Any = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in seen else own
        seen.add(place)
    return found
