"""What is installed with xhat, and what is shipped."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"


def plain(name):
    """A project's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned():
    """The hashes of each project in constraints.txt, by its name and version."""
    lines = re.sub(r"\\\n", "", re.sub(r"^ *#.*\n", "", CONSTRAINTS.read_text(), flags=re.MULTILINE)).splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)(?: ; [^\\]*?)?((?: +--hash=sha256:[0-9a-f]{64})+) *", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {(plain(match[1]), match[2]): re.findall(r"sha256:(\w+)", match[3]) for match in found}


def test_every_version_that_pip_may_install_has_hashes():
    assert len(pinned()) > 100


def test_whatever_pyproject_asks_for_is_pinned():
    asked = subprocess.run([sys.executable, ROOT / ".ci/needed.py", "dev"], capture_output=True, text=True, check=True).stdout
    names = {plain(re.match(r"[\w.-]+", line)[0]) for line in asked.splitlines()}
    assert {"torch", "hatchling", "pytest", "pip"} <= names <= {name for name, _ in pinned()}
