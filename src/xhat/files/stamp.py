"""Whether a file is what it was when it was opened: it is read again and again while a training runs."""

from pathlib import Path

from xhat.errors import DataError


def stamp(path: Path) -> str:
    """A file as it is now: as long as nobody touches it, the same."""
    about = path.stat()
    return f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"


def require_unchanged(path: Path, before: str) -> None:
    """Refuse a file that is not what it was.

    Raises:
        DataError: it has another size or time, or is gone.
    """
    try:
        now = stamp(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read any more ({error.strerror}): put it back, and go on with --resume") from None
    if now != before:
        what = "put it back as it was and go on with --resume, or train anew"
        raise DataError(f"{path} has changed since it was opened: {what}")
