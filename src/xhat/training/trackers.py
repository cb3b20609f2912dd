"""The numbers of a run, and its pictures, in somebody's tracker: through Accelerate's own."""

import importlib.util
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xhat.errors import RunError, first_line
from xhat.files.atomic import write_bytes
from xhat.training.callbacks import Callback, Moment

FOLDER, PROJECT = "tracked", "xhat"


class Track(Callback):
    """Logs every row of metrics.jsonl by its own names, and every picture of samples.

    What a tracker writes locally is in the run's folder `tracked`. A resumed run goes on in the tracker's own run. The settings
    are the tracker's environment variables, such as WANDB_MODE=offline, WANDB_PROJECT or MLFLOW_TRACKING_URI. One that fails
    on the way costs a warning, never the run.

    Args:
        run: the run's folder; it exists.
        values: what the run is trained with, flat, by name.

    Raises:
        RunError: the tracker cannot start.
    """

    name, package = "", ""

    def __init__(self, run: Path, values: Mapping[str, Any]) -> None:
        self.folder, self.failed = run / FOLDER, False
        self.folder.mkdir(exist_ok=True)
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
        try:
            self.tracker = self.started(run.resolve().name, plain)
        except Exception as error:
            raise RunError(f"track {self.name}: it does not start: {first_line(error)}") from error

    def started(self, title: str, values: dict[str, Any]) -> Any:
        """Accelerate's tracker, begun or gone on with; `values` are told to it once."""
        raise NotImplementedError(f"{type(self).__name__} must define started")

    def draw(self, path: Path, step: int) -> None:
        """Log a picture."""
        raise NotImplementedError(f"{type(self).__name__} must define draw")

    def logged(self, at: Moment) -> None:
        self._attempt(lambda: self.log(flat_numbers(at.numbers), at.step))

    def pictured(self, at: Moment) -> None:
        assert at.path is not None
        path, step = at.path, at.step
        self._attempt(lambda: self.draw(path, step))

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Log numbers by name."""
        self.tracker.log(numbers, step=step)

    def close(self) -> None:
        """The run of the tracker ends, whatever went wrong before."""
        self.failed = False
        self._attempt(self.tracker.finish)

    def known(self) -> str | None:
        """The name that the tracker knows the run by, if it has begun before."""
        path = self.folder / f"{self.name}.id"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def remember(self, name: str) -> str:
        """Keep the name for whoever resumes the run."""
        write_bytes(self.folder / f"{self.name}.id", name.encode())
        return name

    def _attempt(self, log: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            log()
        except Exception as error:
            self.failed = True
            warnings.warn(f"track {self.name}: {error}; training goes on without", stacklevel=2)


class TensorBoard(Track):
    """An event file. It is not told what the run is trained with: TensorBoard makes another run of that, with nothing else."""

    name, package = "tensorboard", "tensorboard"

    def started(self, title: str, values: dict[str, Any]) -> Any:
        from accelerate.tracking import TensorBoardTracker

        tracker = TensorBoardTracker(".", logging_dir=str(self.folder))
        tracker.start()
        return tracker

    def draw(self, path: Path, step: int) -> None:
        self.tracker.log_images({"samples": _pixels(path)[None]}, step=step, dataformats="NHWC")


class WandB(Track):
    """Weights & Biases."""

    name, package = "wandb", "wandb"

    def started(self, title: str, values: dict[str, Any]) -> Any:
        from accelerate.tracking import WandBTracker

        number = self.known() or self.remember(secrets.token_hex(4))
        tracker = WandBTracker(PROJECT, name=title, dir=str(self.folder), id=number, resume="allow")
        tracker.start()
        tracker.store_init_configuration(values)
        return tracker

    def draw(self, path: Path, step: int) -> None:
        self.tracker.log_images({"samples": _pixels(path)[None]}, step=step)


class MLflow(Track):
    """MLflow; where nobody says where to, by MLFLOW_TRACKING_URI or in the program, in the run's folder."""

    name, package = "mlflow", "mlflow-skinny"

    def started(self, title: str, values: dict[str, Any]) -> Any:
        import mlflow
        from accelerate.tracking import MLflowTracker

        self.ours = not mlflow.is_tracking_uri_set()
        if self.ours:  # by itself it writes into the current folder
            os.environ["MLFLOW_TRACKING_URI"] = (self.folder.resolve() / "mlruns").as_uri()
        before = self.known()
        tracker = MLflowTracker(PROJECT, run_name=title, run_id=before)
        tracker.start()
        if before is None:  # it refuses values that have changed
            self.remember(tracker.tracker.info.run_id)
            tracker.store_init_configuration(values)
        return tracker

    def log(self, numbers: dict[str, float], step: int) -> None:
        super().log({name.replace("=", ":"): value for name, value in numbers.items()}, step)  # its names have no =

    def draw(self, path: Path, step: int) -> None:
        self.tracker.log_artifact(str(path), "samples")

    def close(self) -> None:
        super().close()
        if self.ours:
            os.environ.pop("MLFLOW_TRACKING_URI", None)


TRACKERS = {kind.name: kind for kind in (TensorBoard, WandB, MLflow)}


def require_tracker(name: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        RunError: what to install.
    """
    if importlib.util.find_spec(name) is None:
        raise RunError(f"track {name}: it is not installed: pip install {TRACKERS[name].package}")


def _pixels(path: Path) -> np.ndarray:
    """A picture as uint8 (H, W, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


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
