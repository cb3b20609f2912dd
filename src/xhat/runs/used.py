"""The files of a user's parts that a run was trained with: a copy, a checksum, and what later commands say of them."""

import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from xhat.config.use import UsedFile, used_files
from xhat.errors import RunError
from xhat.files import write_bytes
from xhat.registry import FAMILIES

FOLDER, LIST = "used", "used.json"


@dataclass(frozen=True)
class Used:
    """A file of parts, as a run remembers it.

    Attributes:
        sha256: of its bytes.
        parts: names that it registered, and of which kind.
    """

    sha256: str
    parts: dict[str, str]

    @classmethod
    def of(cls, file: UsedFile) -> Self:
        """A file of this process."""
        return cls(file.sha256, file.parts)


def as_json(files: Sequence[UsedFile]) -> str:
    """Files by name."""
    return json.dumps({file.name: asdict(Used.of(file)) for file in files})


def from_json(text: str) -> dict[str, Used]:
    """What `as_json` wrote.

    Raises:
        KeyError, TypeError or ValueError: it did not.
    """
    stored: dict[str, Any] = json.loads(text)
    return {name: Used(**values) for name, values in stored.items()}


def keep_used(run: Path, files: Sequence[UsedFile]) -> None:
    """Copy files into the run, with their checksums."""
    if not files:
        return
    (run / FOLDER).mkdir(exist_ok=True)
    for file in files:
        write_bytes(run / FOLDER / file.name, file.source)
    write_bytes(run / FOLDER / LIST, as_json(files).encode())


def used_by(run: Path) -> dict[str, Used]:
    """The files that a run was trained with, by name; of none for one without."""
    try:
        return from_json((run / FOLDER / LIST).read_text(encoding="utf-8"))
    except (KeyError, OSError, TypeError, ValueError):
        return {}


def require_used(used: Mapping[str, Used], run: Path) -> None:
    """Refuse to go on without the files that a run needs; warn of one that has changed since.

    Args:
        used: by name.
        run: the run's folder, or a file in it.

    Raises:
        RunError: a file was not named with --use, and its parts are not registered otherwise.
    """
    here = {file.name: file for file in used_files()}
    folder = run if run.is_dir() else run.parent
    missing = [name for name, file in used.items() if name not in here and not _registered(file)]
    if missing:
        kept = [shlex.quote(str(copy)) for name in missing if (copy := folder / FOLDER / name).is_file()]
        where = f" (a copy lies in {', '.join(kept)})" if kept else ""
        add = " ".join(f"--use {name}" for name in missing)
        raise RunError(f"{run} was trained with parts of {', '.join(missing)}: add {add}{where}")
    for name, file in used.items():
        if name in here and here[name].sha256 != file.sha256:
            then = f": the copy of then lies in {folder / FOLDER}" if (folder / FOLDER / name).is_file() else ""
            warnings.warn(f"{name} has changed since {run} was trained with it{then}", stacklevel=2)


def _registered(file: Used) -> bool:
    """Whether a program of the user's has brought its parts in another way."""
    families = {family.kind: family for family in FAMILIES}
    return all(kind in families and part in families[kind] for part, kind in file.parts.items())
