"""One process at a time in a folder: a lock of the operating system, which ends with the process, however that ends."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from xhat.distributed import from_main, main_process, processes
from xhat.errors import SharedError
from xhat.files.locks import lock_if_possible

LOCK_FILE, ATTEMPTS = ".lock", 1000


@contextlib.contextmanager
def reserved(folder: Path, doing: str, option: str) -> Iterator[int | None]:
    """The folder, made if need be, for this process and its other ranks alone; what stays empty is removed again.

    Args:
        folder: of a run or of a study.
        doing: what keeps it busy, for the error: "training in".
        option: that names the folder.

    Yields:
        The open lock file, on the main process: a process that inherits it keeps the folder reserved for as long as it lives.

    Raises:
        SharedError: another process has reserved it, or it cannot be written.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    held, refusal = None, None
    if main_process():
        try:
            held = _locked(folder)
        except BlockingIOError:
            refusal = f"another process is {doing} {folder}: wait for it or choose another {option}"
        except OSError as error:
            refusal = f"cannot write {error.filename or folder}: {error.strerror or error}"
    try:
        if refusal := _told(refusal):
            raise SharedError(refusal)
        yield held
    finally:
        if held is not None:
            _release(held, folder / LOCK_FILE)
        if main_process():
            for path in made:
                with contextlib.suppress(OSError):  # something was written there, or another process is starting there
                    path.rmdir()


_HELD = set[int]()
"""Lock files of this process: a fork, which may outlive it for a moment, lets go of them."""


def _let_go() -> None:
    for file in _HELD:
        os.close(file)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _locked(folder: Path) -> int:
    """The open lock file, locked.

    Raises:
        BlockingIOError: another process has it.
    """
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed the folder, or the file
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                _lock(file)
                _HELD.add(file)
                if os.fstat(file).st_ino == (folder / LOCK_FILE).stat().st_ino:  # else it was removed: nobody else would see it
                    return file
            except BaseException:
                _HELD.discard(file)
                os.close(file)
                raise
            _HELD.discard(file)
            os.close(file)
    raise BlockingIOError


def _release(file: int, path: Path) -> None:
    """Removed while it is locked where that can be, so that nobody else's is."""
    failure = _removed(path)
    _HELD.discard(file)
    os.close(file)
    if sys.platform == "win32":
        failure = _removed(path)
    if failure:
        warnings.warn(f"{path} stays: {failure}; it keeps nobody out, and the next command removes it", stacklevel=2)


def _removed(path: Path) -> str | None:
    """What kept a file from being removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _lock(file: int) -> None:
    if not lock_if_possible(file):
        warnings.warn("this file system has no locks: nothing keeps a second process out of the folder", stacklevel=2)


def _told(refusal: str | None) -> str | None:
    """What the main process found, on all ranks; they meet here for the first time."""
    if processes() == 1:
        return refusal
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    found = from_main(refusal)
    if found is not None:
        state.destroy_process_group()
    return found
