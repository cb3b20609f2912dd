"""What a command writes beside its result: a progress bar and notes on stderr, JSON on stdout."""

import json
import math
import sys
from typing import Any

from rich.console import Console
from rich.progress import Progress

from xhat.data.images import Images
from xhat.data.scale import EIGHT_BITS


def progress_bar() -> Progress:
    """A bar on stderr that leaves no trace; nothing at all where stderr is no terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def note(message: str) -> None:
    """One line on stderr about something that did not stop the command."""
    print(f"xhat: note: {message}", file=sys.stderr)


def noted(images: Images) -> Images:
    """The images, after saying what was noticed while reading them."""
    low, high = images.found.scale
    scaled = [] if images.found.scale == EIGHT_BITS else [f"{images.name}: values from {low:g} to {high:g} become 0 to 255"]
    for line in (*images.found.notes, *scaled):
        note(line)
    return images


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on stdout, null for a number that is not finite: JSON has none."""
    print(json.dumps(_finite(result), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
