"""One YAML per published recipe."""

from importlib.resources import files
from pathlib import PurePath


def preset_names() -> list[str]:
    """The presets that the package ships."""
    return sorted(PurePath(p.name).stem for p in files("xhat.config.presets").iterdir() if p.name.endswith(".yaml"))
