"""Files that are whole or not there: written beside and renamed; and tensors read out of them."""

import math
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


def write_bytes(path: Path, data: bytes) -> None:
    """Write so that `path` is either the old file or the whole new one, also when power fails."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def sweep(folder: Path) -> None:
    """Remove what a write that was killed left behind."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)  # each rank sweeps


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory: tied weights are written once under each of their names."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in seen else own
        seen.add(place)
    return found


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, copied out of it: a mapped file that is cut later would be a bus error."""
    with safe_open(path, framework="pt") as file:
        names: list[str] = file.keys()
        return dict(file.metadata() or {}), {name: file.get_tensor(name).clone() for name in names}


def for_json(value: Any) -> Any:
    """The value with null for a number that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {key: for_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
