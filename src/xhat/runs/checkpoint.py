"""The training state in a run's folder: the last two checkpoints are kept, tensors and JSON only, each with its checksum."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xhat.errors import DamagedError, RunError
from xhat.files.tensors import read_tensors, write_tensors

KEEP = 2
NAME = re.compile(r"checkpoint-([0-9]{8,})\.safetensors")
"""What a checkpoint is called; a copy of another name is the user's own, and is never touched."""


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
    write_tensors(path, tensors, {"step": str(step), "tree": json.dumps(tree)})
    drop_old(run)
    return path


def drop_old(run: Path) -> None:
    """Remove all but the last two checkpoints."""
    for old in checkpoints(run)[KEEP:]:
        old.unlink()


def newest_checkpoint(run: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest checkpoint that is whole, and the newer ones, which are damaged; None if there is no checkpoint at all.

    Raises:
        RunError: there are some, and all of them are damaged.
        OSError: one cannot be read, which says nothing of what is in it.
    """
    damaged: list[Path] = []
    for path in checkpoints(run):
        try:
            return _read(path), damaged
        except DamagedError:
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise RunError(
            f"all checkpoints of {run} are damaged ({names}): train anew from its weights, --init {run}, in another --run, "
            "or move them away to start from step 0"
        )
    return None, []


def set_aside(damaged: list[Path]) -> list[str]:
    """Give damaged checkpoints names under which nothing reads, counts or replaces them; a line about each."""
    lines = []
    for path in damaged:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        lines.append(f"{path.name} is damaged: it is now {aside.name}, and the run goes back to the checkpoint before it")
    return lines


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint files of a run, the newest first."""
    found = [(int(name.group(1)), path) for path in run.iterdir() if (name := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _read(path: Path) -> Checkpoint:
    metadata, tensors = read_tensors(path)
    try:
        return Checkpoint(path, int(metadata["step"]), _decode(json.loads(metadata["tree"]), tensors))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"it is no checkpoint ({type(error).__name__})") from None


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
