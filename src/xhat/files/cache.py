"""The folder of what was made once and can be made again: latents, decoded images."""

import os
from pathlib import Path

CACHE = "XHAT_CACHE"
"""The variable that names it."""


def cache_folder() -> Path:
    """$XHAT_CACHE, or xhat in the user's own cache folder."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xhat"
