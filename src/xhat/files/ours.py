"""Pictures and pages say that xhat made them: these may be made anew; whatever else has their name is somebody's own."""

from pathlib import Path

from xhat.errors import UsageError
from xhat.files.atomic import read_bytes, sweep, write_bytes

SOFTWARE = {"Software": "xhat"}
"""The text that a PNG of ours holds."""
GENERATOR = '<meta name="generator" content="xhat">'
"""What the head of a page of ours holds."""
SIGNS = (b"tEXtSoftware\0xhat", GENERATOR.encode())
HEAD = 4096


def is_ours(path: Path) -> bool:
    """Whether a file is a picture or a page of ours.

    Raises:
        OSError: it cannot be read.
    """
    head = read_bytes(path, HEAD)
    return any(sign in head for sign in SIGNS)


def require_free(path: Path, *, force: bool = False, ours: bool = False) -> None:
    """Refuse to write over a file.

    Args:
        path: where something is to be written.
        force: whether the user has said that it may go.
        ours: whether a picture or a page of ours may go without that.

    Raises:
        UsageError: it is there, and may not go, or is no file.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file")
    sweep(path.parent)  # of what a kill left: where the file is refused, no write follows that would do it
    if force or not (path.exists() or path.is_symlink()):
        return
    if not (ours and path.is_file() and is_ours(path)):
        raise UsageError(f"{path} exists already: name another file, move it away, or add --force to replace it")


def write_ours(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a picture or a page that says that it is ours, over nothing else than such a one.

    Raises:
        UsageError: something else is there.
        OSError: it cannot be written.
    """
    assert any(sign in data[:HEAD] for sign in SIGNS)
    require_free(path, force=force, ours=True)
    write_bytes(path, data)
