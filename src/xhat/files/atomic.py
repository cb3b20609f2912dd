"""Files that are whole or not there: written beside, under a random name, and renamed."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from xhat.files.locks import NO_LOCKS, lock, lock_if_possible

PARTIAL = re.compile(r"\.xhat-[0-9a-f]{16}\.partial")
NO_LINKS = (*NO_LOCKS, errno.EPERM, errno.EMLINK)
"""What a file system without hard links answers."""
NO_SYNC = (*NO_LOCKS, errno.EINVAL, errno.EBADF)
"""What a file system answers that cannot make the name of a file durable."""
ATTEMPTS = 1000


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the system says of a file name it: reading and writing an open one do not.

    Raises:
        OSError: `path` is its filename.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_bytes(path: Path, most: int = -1) -> bytes:
    """The bytes of a file, or its first.

    Raises:
        OSError: it cannot be read; `path` is its filename.
    """
    with naming(path), path.open("rb") as file:
        return file.read(most)


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file of any size, read in parts.

    Raises:
        OSError: it cannot be read; `path` is its filename.
    """
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_bytes(path: Path, *parts: bytes | memoryview, replace: bool = True) -> None:
    """`write_parts` of bytes that are there already."""
    write_parts(path, parts, replace=replace)


def write_parts(path: Path, parts: Iterable[bytes | memoryview], *, replace: bool = True) -> None:
    """Write so that `path` is either what it was or the whole new file, also when the power fails.

    Args:
        path: of the file.
        parts: its bytes, one after the other; what they raise is raised, and nothing written.
        replace: whether a file that is there may go.

    Raises:
        FileExistsError: it is there, and may not.
        OSError: it cannot be written; `path` is its filename, and what was there still is. Where the folder alone could not be
            made durable, the new one is there instead, unless it must not have replaced any.
    """
    with naming(path):
        sweep(path.parent)
        beside, file = _partial(path.parent)
        try:
            for part in parts:
                _write(file, part)
            os.fsync(file)
            if sys.platform == "win32":  # where an open file cannot be renamed
                os.close(file)
                file = -1
            if replace:
                beside.replace(path)
            else:
                _put_new(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        finally:
            if file >= 0:
                os.close(file)
        with contextlib.nullcontext() if replace else _taken_back(path):
            sync_folder(path.parent)


def append_bytes(path: Path, data: bytes) -> None:
    """Write at the end of a file; what a crash leaves of it is cut short, and for the reader to notice.

    Raises:
        OSError: it cannot be written; `path` is its filename.
    """
    with naming(path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _write(file, data)
        finally:
            os.close(file)


def sync(path: Path) -> None:
    """Make what was appended to a file durable; nothing to do for one that is not there.

    Raises:
        OSError: `path` is its filename.
    """
    with contextlib.suppress(FileNotFoundError), naming(path):
        file = os.open(path, os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def sweep(folder: Path) -> None:
    """Remove what writes that were killed have left in a folder; those under way are locked by their process, and stay."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if PARTIAL.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_unlocked(Path(entry.path))


def _remove_unlocked(partial: Path) -> None:
    file = os.open(partial, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        lock(file)
        partial.unlink()
    finally:
        os.close(file)


def _partial(folder: Path) -> tuple[Path, int]:
    """A new file of a name that nobody can foresee, open and locked."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    for _ in range(ATTEMPTS):
        path = folder / f".xhat-{secrets.token_hex(8)}.partial"
        file = os.open(path, flags, 0o666)
        try:
            with contextlib.suppress(BlockingIOError):  # whoever sweeps has it, and removes it
                lock_if_possible(file)
                if os.fstat(file).st_nlink:
                    return path, file
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        os.close(file)
    raise OSError(errno.EAGAIN, "other processes remove what is written there", str(folder))


def _write(file: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(file, left) :]


def _put_new(beside: Path, path: Path) -> None:
    """Give a file its name, which no other has."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        beside.replace(path)
    else:
        with _taken_back(path):
            beside.unlink()


@contextlib.contextmanager
def _taken_back(path: Path) -> Iterator[None]:
    """Remove a new file when what makes it last fails: a repeated command would take it for somebody else's."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if sys.platform == "win32":
        return
    try:
        file = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(file)
