"""Files of a run, safe against crashes: written beside and renamed, the last two kept, tensors and JSON only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from xhat.files import apart, read_tensors, write_bytes

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A training state that was read back: tensors in place, `step` steps done."""

    path: Path
    step: int
    state: dict[str, Any]


def save_checkpoint(run: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after `step` steps and drop all but the last two checkpoints.

    Args:
        run: the run's folder.
        step: steps done.
        state: dicts, lists and tuples of tensors and JSON values; dict keys may be integers.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    path = run / f"checkpoint-{step:08d}.safetensors"
    write_bytes(path, save(apart(tensors), metadata={"format": "xhat-1", "step": str(step), "tree": json.dumps(tree)}))
    for other in _checkpoints(run):
        if other > path:  # of a later step: damaged, since the run went back
            other.unlink()
    for old in _checkpoints(run)[KEEP:]:
        old.unlink()
    return path


def newest_checkpoint(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and a line about each newer one that cannot."""
    damaged: list[str] = []
    for path in _checkpoints(run):
        try:
            metadata, tensors = read_tensors(path)
            return Checkpoint(path, int(metadata["step"]), _decode(json.loads(metadata["tree"]), tensors)), damaged
        except PermissionError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError):
            damaged.append(f"{path.name} is cut short or damaged; going back to the checkpoint before it")
    return None, damaged


def _checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoint-*.safetensors"), reverse=True)


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, tensors replaced by their names; lists of pairs keep the integer keys of optimizer states."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[k, _encode(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: _decode(v, tensors) for k, v in inner}
    items = [_decode(v, tensors) for v in inner]
    return tuple(items) if kind == "tuple" else items
