"""The numbers of a run, and its pictures, in somebody's tracker: through Accelerate's own."""

import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xhat.errors import RunError, first_line
from xhat.files import write_bytes
from xhat.training.callbacks import Callback, Moment

FOLDER, PROJECT = "tracked", "xhat"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}


class Track(Callback):
    """Logs every row of metrics.jsonl by its own names, and every picture of samples.

    What a tracker writes locally is in the run's folder `tracked`. A resumed run goes on in the tracker's own run. The settings
    are the tracker's environment variables, such as WANDB_MODE=offline, WANDB_PROJECT or MLFLOW_TRACKING_URI. One that fails
    on the way costs a warning, never the run.

    Args:
        name: of the tracker.
        run: the run's folder; it exists.
        values: what the run is trained with, flat, by name.

    Raises:
        RunError: the tracker is not installed, or cannot start.
    """

    def __init__(self, name: str, run: Path, values: Mapping[str, Any]) -> None:
        require_tracker(name)
        known = (run / FOLDER / f"{name}.id").is_file()
        self.name, self.folder, self.failed = name, run / FOLDER, False
        self.folder.mkdir(exist_ok=True)
        try:
            self.tracker = self._started(run.resolve().name)
            plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
            # TensorBoard would make a second run of them, with nothing else; MLflow refuses values that have changed
            if name == "wandb" or (name == "mlflow" and not known):
                self.tracker.store_init_configuration(plain)
        except Exception as error:
            raise RunError(f"track {name}: it does not start: {first_line(error)}") from error

    def _started(self, title: str) -> Any:
        from accelerate import tracking

        if self.name == "tensorboard":
            tracker = tracking.TensorBoardTracker(".", logging_dir=str(self.folder))
        elif self.name == "wandb":
            own = {"name": title, "dir": str(self.folder), "id": self._id(), "resume": "allow"}
            tracker = tracking.WandBTracker(PROJECT, **own)
        else:
            tracker = tracking.MLflowTracker(PROJECT, logging_dir=None, run_name=title, run_id=self._known())
        tracker.start()
        if self.name == "mlflow":
            write_bytes(self.folder / "mlflow.id", tracker.tracker.info.run_id.encode())
        return tracker

    def _id(self) -> str:
        """That of the tracker's run: the same after a resume."""
        if (known := self._known()) is None:
            known = secrets.token_hex(4)
            write_bytes(self.folder / f"{self.name}.id", known.encode())
        return known

    def _known(self) -> str | None:
        path = self.folder / f"{self.name}.id"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def logged(self, at: Moment) -> None:
        numbers = flat_numbers(at.numbers)
        if self.name == "mlflow":  # whose names have no =
            numbers = {name.replace("=", ":"): value for name, value in numbers.items()}
        self._attempt(lambda: self.tracker.log(numbers, step=at.step))

    def pictured(self, at: Moment) -> None:
        assert at.path is not None
        path, step = at.path, at.step
        self._attempt(lambda: self._picture(path, step))

    def close(self) -> None:
        """The run of the tracker ends, whatever went wrong before."""
        self.failed = False
        self._attempt(self.tracker.finish)

    def _picture(self, path: Path, step: int) -> None:
        if self.name == "mlflow":
            self.tracker.log_artifact(str(path), "samples")
            return
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        how = {"dataformats": "NHWC"} if self.name == "tensorboard" else {}
        self.tracker.log_images({"samples": pixels[None]}, step=step, **how)

    def _attempt(self, log: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            log()
        except Exception as error:
            self.failed = True
            warnings.warn(f"track {self.name}: {error}; training goes on without", stacklevel=2)


def require_tracker(name: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        RunError: what to install.
    """
    import importlib.util

    module = "tensorboard" if name == "tensorboard" else name
    if importlib.util.find_spec(module) is None:
        raise RunError(f"track {name}: it is not installed: pip install {PACKAGES[name]}")


def flat_numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row by their paths: terms/denoise, levels/denoise/-8, eval/bits_per_dim."""
    found: dict[str, float] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{name}/")
        elif isinstance(value, int | float) and key != "step":
            found[name] = value
    return found
