"""What a run was trained with and on: versions and the kind of machine, nothing that names it or its user."""

import platform
import warnings
from pathlib import Path

import torch

from xhat.budgets import cores
from xhat.errors import DamagedError
from xhat.files.values import read_values, write_values
from xhat.runs.places import ENVIRONMENT


def write_environment(run: Path) -> None:
    """Write what the run is trained with and on."""
    from xhat import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    found = {
        "xhat": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": gpu or f"CPU, {torch.get_num_threads()} of {cores()} threads",
    }
    write_values(run / ENVIRONMENT, found)


def read_environment(run: Path) -> dict[str, str]:
    """What `write_environment` wrote; empty for a run of before there was one, and, with a warning, of a damaged one.

    Raises:
        OSError: it cannot be read.
    """
    try:
        found: dict[str, str] = read_values(run / ENVIRONMENT, dict[str, str])
        return found
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        warnings.warn(f"{run / ENVIRONMENT} is damaged and left out: {error}", stacklevel=2)
        return {}
