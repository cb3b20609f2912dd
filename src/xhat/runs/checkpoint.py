"""The training state in a run's folder: the last two checkpoints are kept, tensors and JSON only, each with its checksum."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from xhat.diffusion.sharded import is_split
from xhat.distributed import main_process
from xhat.errors import DamagedError, RunError
from xhat.files.tensors import Copied, read_tensors
from xhat.runs.places import checkpoints
from xhat.runs.split_checkpoint import read_split, split_copy

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A training state that was read back, `step` steps done."""

    path: Path
    step: int
    tree: Any
    tensors: Mapping[str, Tensor]

    @cached_property
    def state(self) -> dict[str, Any]:
        """All of it, tensors in place."""
        return self.placed(lambda name, x: x)

    def placed(self, place: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
        """All of it, each tensor as `place` makes it of its name, /key/key, and its values, one after the other.

        Raises:
            DamagedError: it is no checkpoint.
        """
        try:
            found: dict[str, Any] = _decode(self.tree, _Placed(self.tensors, place))
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise DamagedError(f"it is no checkpoint ({type(error).__name__})") from None
        return found


def checkpoint_of(run: Path, step: int, state: dict[str, Any], group: Any = None) -> Callable[[], Path]:
    """A copy of the state after `step` steps, and what writes it: training may go on in between, and meanwhile.

    Where tensors are split over processes, all of them take part and write a folder; else one of them writes a file. All but
    the last two checkpoints go.

    Args:
        run: the run's folder.
        step: steps done.
        state: dicts, lists and tuples of tensors and JSON values; dict keys may be integers.
        group: see `split_copy`.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    path = run / f"checkpoint-{step:08d}.safetensors"
    split = any(map(is_split, tensors.values()))
    if split:
        path = path.with_suffix(".split")
        put = split_copy(tensors, step, tree, group)
    else:
        put = Copied(tensors, {"step": str(step), "tree": json.dumps(tree)}).write

    def write() -> Path:
        put(path)
        if not split or main_process():
            drop_old(run)
        return path

    return write


def save_checkpoint(run: Path, step: int, state: dict[str, Any]) -> Path:
    """`checkpoint_of`, written at once."""
    return checkpoint_of(run, step, state)()


def drop_old(run: Path) -> None:
    """Remove all but the last two checkpoints."""
    for old in checkpoints(run)[KEEP:]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


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


def _read(path: Path) -> Checkpoint:
    metadata, tensors = read_split(path) if path.is_dir() else read_tensors(path)
    try:
        found = Checkpoint(path, int(metadata["step"]), json.loads(metadata["tree"]), tensors)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"it is no checkpoint ({type(error).__name__})") from None
    if not path.is_dir():
        _ = found.state  # what cannot be decoded is found here
    return found


class _Placed(Mapping[str, Tensor]):
    """name -> a tensor as somebody makes it of what is kept."""

    def __init__(self, tensors: Mapping[str, Tensor], place: Callable[[str, Tensor], Tensor]) -> None:
        self.tensors, self.place = tensors, place

    def __getitem__(self, name: str) -> Tensor:
        return self.place(name, self.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


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


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: _decode(v, tensors) for k, v in inner}
    items = [_decode(v, tensors) for v in inner]
    return tuple(items) if kind == "tuple" else items
