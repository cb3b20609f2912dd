"""What an interrupted measurement of the bound has so far, in a file of the run's folder."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xhat.bound.control import Control, cells
from xhat.bound.density import Pilot
from xhat.bound.estimate import Progress
from xhat.bound.pixels import KNOWN, PixelErrors
from xhat.errors import DamagedError, UsageError
from xhat.files.tensors import read_tensors, write_tensors

FORMAT = "xhat-bound-5"  # to be raised with every change of the draws, or of what the numbers mean
PIXELS = ("pixel_values", "pixel_spreads", "pixel_slopes")  # of `PixelErrors`, in its order


class ProgressFile:
    """The file. A folder that cannot be written costs a warning, never the measurement.

    Args:
        path: of the file.
        settings: all that the numbers depend on, JSON values.
    """

    def __init__(self, path: Path, settings: list[Any]) -> None:
        self.path, self.settings, self.writable = path, json.dumps([FORMAT, *settings]), True

    def read(self, parts: int, images: int, pilot: bool) -> Progress:
        """What a measurement with the same settings left; nothing if it has other settings or is damaged.

        Args:
            parts: of the bound.
            images: to be measured.
            pilot: whether there is to be one.

        Raises:
            OSError: it cannot be read.
        """
        try:
            metadata, tensors = read_tensors(self.path)
            if metadata["settings"] != self.settings:
                _warn(f"{self.path.name} was left by a measurement with other settings: starting anew")
                return Progress()
            wanted = (float(metadata["precision"]), int(metadata["wanted"])) if "wanted" in metadata else None
            found = Progress(None, tensors["terms"], tensors["by_cell"], wanted)
            if pilot:
                pixels = PixelErrors(*(tensors[name] for name in PIXELS))
                control = Control(tensors["constant"], tensors["slope"], pixels)
                opposite = {"True": True, "False": False}[metadata["opposite"]]
                found.pilot = Pilot(tensors["probability"], control, int(metadata["evaluations"]), opposite)
        except FileNotFoundError:
            return Progress()
        except (DamagedError, KeyError, ValueError):
            found = Progress()
        if not _sound(found, parts, images):
            _warn(f"{self.path.name} is damaged: starting anew")
            return Progress()
        return found

    def write(self, progress: Progress) -> None:
        """Replace what the file holds."""
        if not self.writable:
            return
        tensors, metadata = {"terms": progress.terms, "by_cell": progress.by_cell}, {"settings": self.settings}
        if progress.wanted is not None:
            metadata |= {"precision": repr(progress.wanted[0]), "wanted": str(progress.wanted[1])}
        if (pilot := progress.pilot) is not None:
            control = pilot.control
            tensors |= {"probability": pilot.probability, "constant": control.constant, "slope": control.slope}
            tensors |= dict(zip(PIXELS, vars(control.pixels).values(), strict=True))
            metadata |= {"evaluations": str(pilot.evaluations), "opposite": str(pilot.opposite)}
        self.writable = attempt(self.path, lambda: write_tensors(self.path, tensors, metadata))

    def remove(self) -> None:
        """The measurement is complete."""
        if self.path.is_file():
            attempt(self.path, self.path.unlink)


def attempt(path: Path, write: Callable[[], None]) -> bool:
    """Whether a write succeeded; a warning if not."""
    try:
        write()
    except (OSError, UsageError) as error:
        _warn(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")
        return False
    return True


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _sound(progress: Progress, parts: int, images: int) -> bool:
    """Whether it can be of at most so many images, and a bound of so many parts: shapes, finite numbers, their ranges."""
    rows = progress.terms.shape[0] if progress.terms.ndim else 0
    wanted = [(progress.terms, (rows, 3)), (progress.by_cell, (len(cells(parts)),))]
    if (pilot := progress.pilot) is not None:
        none, pixels = Control.none(parts), pilot.control.pixels
        wanted += [(pilot.control.constant, tuple(none.constant.shape)), (pilot.control.slope, tuple(none.slope.shape))]
        wanted += [(pilot.probability.log(), (parts,))]  # all positive
        count = (pixels.values.numel() + 1) * (pixels.spreads.numel() + 1)
        wanted += [(pixels.values, (pixels.values.numel(),)), (pixels.spreads, (pixels.spreads.numel(),))]
        wanted += [(pixels.slopes, (len(cells(parts)), count, KNOWN))]
        if pilot.evaluations < 0:
            return False
    fits = [x.shape == shape and x.dtype == torch.float64 and bool(x.isfinite().all()) for x, shape in wanted]
    return 0 < rows <= images and all(fits)
