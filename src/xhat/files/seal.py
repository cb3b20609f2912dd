"""The checksum that a file holds of itself: over all of its bytes, with zeros where it stands."""

import hashlib
import re

from xhat.errors import DamagedError

KEY, FORMAT = "xhat_sha256", "xhat-2"
OPEN = "0" * 64
"""What stands in place of the checksum while it is computed."""
HOLE = re.compile(rb'(?<!\\)"xhat_sha256": ?"([0-9a-f]{64})"')


def sealed(head: bytes, body: bytes | memoryview = b"") -> tuple[bytes, bytes, bytes, bytes | memoryview]:
    """The parts of a file whose checksum is filled in.

    Args:
        head: its beginning, `OPEN` under the key of that name.
        body: all that follows.
    """
    place = HOLE.search(head)
    assert place is not None
    digest = hashlib.sha256(head)
    digest.update(body)
    return head[: place.start(1)], digest.hexdigest().encode(), head[place.end(1) :], body


def require_sealed(data: bytes, head: int) -> None:
    """Check the checksum of a file.

    Args:
        data: the file.
        head: bytes at its beginning that hold it.

    Raises:
        DamagedError: there is none, or it is another file's.
    """
    place = HOLE.search(data, 0, head)
    if place is None:
        raise DamagedError("its checksum is missing")
    digest, view = hashlib.sha256(), memoryview(data)
    for part in (view[: place.start(1)], OPEN.encode(), view[place.end(1) :]):
        digest.update(part)
    if digest.hexdigest().encode() != place.group(1):
        raise DamagedError("its checksum does not agree")
