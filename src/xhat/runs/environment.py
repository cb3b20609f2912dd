"""What a run was trained with and on: versions and the kind of machine, nothing that names it or its user."""

import json
import os
import platform
from pathlib import Path

import torch

from xhat.files import write_bytes

ENVIRONMENT = "environment.json"


def write_environment(run: Path) -> None:
    """Write what the run is trained with and on."""
    from xhat import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    found = {
        "xhat": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": gpu or f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads",
    }
    write_bytes(run / ENVIRONMENT, json.dumps(found).encode())


def read_environment(run: Path) -> dict[str, str]:
    """What `write_environment` wrote; empty for a run of before there was one."""
    try:
        found: dict[str, str] = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
