"""metrics.jsonl: what a run measures of itself, a line every so many steps; written and read here alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xhat.files import write_bytes

METRICS = "metrics.jsonl"
NEEDED = {"step", "images", "seconds", "images_per_second"}
"""What every row has."""


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Write one more row.

    Args:
        run: the run's folder.
        row: "step", "images", "seconds" and "images_per_second", and whatever else is measured; JSON values.
    """
    with (run / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def forget_metrics(run: Path, step: int) -> None:
    """Drop the rows after `step`, which an interrupted run wrote after its last checkpoint, and what a crash cut short."""
    kept = [row for row in read_metrics(run) if row["step"] <= step]
    write_bytes(run / METRICS, "".join(json.dumps(row) + "\n" for row in kept).encode())


def read_metrics(run: Path) -> list[Mapping[str, Any]]:
    """The rows, up to the first that is damaged: the last may be cut short while training writes it, or by a crash."""
    path = run / METRICS
    rows: list[Mapping[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not row.keys() >= NEEDED:
            break
        rows.append(row)
    return rows
