"""Print what pyproject.toml asks pip for, a line each: to build and to run xhat, and for the extras named."""

import sys
import tomllib
from pathlib import Path

settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
extras = settings["project"]["optional-dependencies"]
print(*settings["build-system"]["requires"], *settings["project"]["dependencies"], sep="\n")
print(*(line for extra in sys.argv[1:] for line in extras[extra]), sep="\n")
