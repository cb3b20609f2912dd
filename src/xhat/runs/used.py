"""The files of a user's parts that a run was trained with: copies, checksums, and what later commands say of them."""

import hashlib
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from xhat.config.use import UsedFile, used_files
from xhat.errors import DamagedError, RunError
from xhat.files.atomic import write_bytes
from xhat.files.values import read_values, write_values
from xhat.registry import FAMILIES
from xhat.runs.places import USED

LIST = "used.json"


@dataclass(frozen=True)
class Used:
    """A file of parts, as a run remembers it.

    Attributes:
        sha256: of its bytes.
        parts: [kind, name] of what it registered.
        beside: SHA-256 of the files that it imports from its own folder, by their path from there.
    """

    sha256: str
    parts: list[list[str]]
    beside: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, file: UsedFile) -> Self:
        """A file of this process."""
        beside = {name: hashlib.sha256(source).hexdigest() for name, source in sorted(file.beside.items())}
        return cls(file.sha256, sorted(map(list, file.parts)), beside)

    @property
    def folder(self) -> str:
        """Of the copies of this version: a file that has changed is kept beside what it was."""
        return hashlib.sha256(repr((self.sha256, sorted(self.beside.items()))).encode()).hexdigest()[:8]


def values_of_used(files: Sequence[UsedFile]) -> dict[str, Any]:
    """Files by name, as JSON holds them: what `dict[str, Used]` is read from."""
    return {file.name: asdict(Used.of(file)) for file in files}


def keep_used(run: Path, files: Sequence[UsedFile]) -> None:
    """Copy files, and what they import from beside them, into the run, with their checksums; earlier copies stay."""
    for file in files:
        for name, source in {file.name: file.source, **file.beside}.items():
            copy = run / USED / Used.of(file).folder / name
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(copy, source)
    if files:
        write_values(run / USED / LIST, values_of_used(files))


def used_by(run: Path) -> dict[str, Used]:
    """The files that a run was trained with, by name; of none for one without.

    Raises:
        RunError: the list of them is damaged.
        OSError: it cannot be read.
    """
    path = run / USED / LIST
    try:
        used: dict[str, Used] = read_values(path, dict[str, Used])
        return used
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        raise RunError(f"{path} is damaged ({error}): remove it, and xhat train --resume writes it anew") from None


def copy_of(run: Path, name: str, file: Used) -> Path | None:
    """Where the copy of a file lies; None where there is none.

    Args:
        run: the run's folder, or a file in it.
        name: of the file.
        file: as the run remembers it.
    """
    folder = run if run.is_dir() else run.parent
    copy = folder / USED / file.folder / name
    return copy if copy.is_file() else None


def require_used(used: Mapping[str, Used], run: Path) -> None:
    """Refuse to go on without the files that a run needs; warn of one that has changed since.

    Args:
        used: by name.
        run: the run's folder, or a file in it.

    Raises:
        RunError: a file was not named with --use, and its parts are not registered otherwise.
    """
    here = {file.name: Used.of(file) for file in used_files()}
    missing = [name for name, file in used.items() if name not in here and not _registered(file)]
    if missing:
        kept = [shlex.quote(str(copy)) for name in missing if (copy := copy_of(run, name, used[name]))]
        where = f" (a copy lies in {', '.join(kept)})" if kept else ""
        add = " ".join(f"--use {shlex.quote(name)}" for name in missing)
        raise RunError(f"{run} was trained with parts of {', '.join(missing)}: add {add}{where}")
    for name, file in used.items():
        if here and name not in here:
            parts = ", ".join(part for _, part in file.parts)
            warnings.warn(f"{run} was trained with {parts} of {name}: it is now that of {', '.join(here)}", stacklevel=2)
        if name in here and here[name].folder != file.folder:
            what = name if here[name].sha256 != file.sha256 else f"what {name} imports"
            then = f": the copy of then is {copy}" if (copy := copy_of(run, name, file)) else ""
            warnings.warn(f"{what} has changed since {run} was trained with it{then}", stacklevel=2)


def _registered(file: Used) -> bool:
    """Whether a program of the user's has brought its parts in another way."""
    families = {family.kind: family for family in FAMILIES}
    return all(kind in families and part in families[kind] for kind, part in file.parts)
