"""Where a run keeps what: the names in its folder, and what says that a folder holds one."""

import re
import shlex
from pathlib import Path

from xhat.errors import RunError

CONFIG_FILE, OBJECTS = "config.yaml", "objects.json"
"""What a run trains; the second is that of objects, which no config names."""
WEIGHTS, METRICS, ENVIRONMENT, USED = "ema.safetensors", "metrics.jsonl", "environment.json", "used"
AVERAGES = "averages"
OF_A_RUN = (CONFIG_FILE, OBJECTS, WEIGHTS, METRICS, ENVIRONMENT, USED, "losses.png", "measured", AVERAGES)
CHECKPOINT = re.compile(r"checkpoint-([0-9]{8,})\.(safetensors|split)")
"""What a checkpoint is called; a copy of another name is the user's own, and is never touched."""


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint files of a run, the newest first."""
    found = [(int(name.group(1)), path) for path in run.iterdir() if (name := CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def weights_of(run: str | Path) -> Path:
    """The weights file of a run folder, or the file itself.

    Raises:
        RunError: there is none.
    """
    path = Path(run)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise RunError(f"{path} does not exist: train first, for example xhat train mnist --run {shlex.quote(str(run))}")
    return path


def require_new(run: Path, resume: str) -> None:
    """Refuse to start a run in a folder where it would write over another one, or over somebody's files.

    Args:
        run: the folder, which may not exist.
        resume: what to add to go on instead, for the error.

    Raises:
        RunError: the folder holds a run, what is left of one, or a file with the name of one of a run's.
    """
    if not run.is_dir():
        return
    if (run / CONFIG_FILE).exists() or (run / OBJECTS).exists():
        raise RunError(f"{run} holds a run already: add {resume} to go on with it, or choose another folder")
    if known := checkpoints(run):
        raise RunError(f"{run} holds {known[0].name}: add {resume} to go on from it, or choose another folder")
    pictures = (path.name for path in (run / "samples").glob("step-*.png"))
    there = next((name for name in OF_A_RUN if (run / name).exists()), None) or next(pictures, None)
    if there is not None:
        raise RunError(f"{run} holds {there}, which a run would write over: choose another folder, or move it away")
