"""metrics.jsonl: what a run measures of itself, a line every so many steps; written and read here alone."""

import json
import re
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xhat.errors import DamagedError
from xhat.files.atomic import append_bytes, read_bytes, sync, write_bytes
from xhat.files.values import of_type, plain_values
from xhat.runs.places import METRICS

OPEN = "0" * 8
CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}$')
"""The end of a line: of all of it, with zeros in place of the checksum."""


@dataclass(frozen=True)
class _Row:
    """What every row has, and the types of what it may have."""

    step: int
    images: int
    seconds: float
    images_per_second: float
    progress: float | None = None
    grad_norm: float | None = None
    loss: float | None = None
    terms: dict[str, float | None] | None = None
    levels: dict[str, dict[str, float | None]] | None = None


@dataclass(frozen=True)
class Mark:
    """How far the rows were when a checkpoint was saved.

    Attributes:
        size: of the file, in bytes.
        crc32: of them.
    """

    size: int = 0
    crc32: int = 0

    def after(self, data: bytes) -> "Mark":
        """Once these are appended."""
        return Mark(self.size + len(data), zlib.crc32(data, self.crc32))


def append_metrics(run: Path, row: Mapping[str, Any], mark: Mark = Mark()) -> Mark:
    """Write one more row.

    Args:
        run: the run's folder.
        row: "step", "images", "seconds" and "images_per_second", and whatever else is measured; JSON values.
        mark: of the rows before.
    """
    line = json.dumps({**row, "crc32": OPEN}).encode()
    line = line[: -len(OPEN) - 2] + f"{zlib.crc32(line):08x}".encode() + b'"}\n'
    append_bytes(run / METRICS, line)
    return mark.after(line)


def sync_metrics(run: Path) -> None:
    """Make the rows durable, which a checkpoint counts."""
    sync(run / METRICS)


def restore_metrics(run: Path, step: int, mark: Mark | None) -> Mark:
    """Go back to the rows that there were at a checkpoint: what an interrupted run wrote after it will be written anew.

    Args:
        run: the run's folder.
        step: of the checkpoint, 0 without one.
        mark: that the checkpoint has; None if it is of before there were any.
    """
    path = run / METRICS
    data = read_bytes(path) if path.exists() else b""
    if mark is not None and Mark().after(data[: mark.size]) == mark:
        kept = data[: mark.size]
    else:
        rows = [(line, row) for line, row in _rows(data, path) if row["step"] <= step]
        kept = b"".join(line + b"\n" for line, _ in rows)
        if mark is not None:
            warnings.warn(f"{path} is not as it was at step {step}: {len(rows)} rows of it are kept", stacklevel=2)
    if kept != data:
        write_bytes(path, kept)
    return Mark().after(kept)


def read_metrics(run: Path) -> list[Mapping[str, Any]]:
    """The rows but for damaged ones, which a warning counts; the last may be cut short while training writes it.

    Raises:
        OSError: they cannot be read.
    """
    path = run / METRICS
    return [row for _, row in _rows(read_bytes(path), path)] if path.exists() else []


def _rows(data: bytes, path: Path) -> list[tuple[bytes, Mapping[str, Any]]]:
    """Lines and what they hold."""
    *lines, _ = data.split(b"\n")  # what follows the last end of a line is not written yet, or was cut short
    checked, found = any(CHECKSUM.search(line) for line in lines), []
    for line in lines:
        try:
            found.append((line, _row(line, checked)))
        except DamagedError:
            continue
    if len(found) < len(lines):
        warnings.warn(f"{path}: {len(lines) - len(found)} of {len(lines)} rows are damaged and left out", stacklevel=3)
    return found


def _row(line: bytes, checked: bool) -> Mapping[str, Any]:
    place = CHECKSUM.search(line)
    if place is not None:
        open_ = line[: place.start(1)] + OPEN.encode() + line[place.end(1) :]
        if f"{zlib.crc32(open_):08x}".encode() != place.group(1):
            raise DamagedError("its checksum does not agree")
    elif checked:
        raise DamagedError("its checksum is missing")
    values = plain_values(line)
    of_type(values, _Row)
    if not all(isinstance(v, int | float | str | dict | list | None) for v in values.values()):
        raise DamagedError("it holds something else than numbers")
    return {key: value for key, value in values.items() if key != "crc32"}
