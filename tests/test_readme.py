"""The README names every preset, and the list of traps is covered. What pages show: test_pages.py."""

import re
from pathlib import Path

from xhat.config.presets import preset_names

ROOT = Path(__file__).parent.parent
COVERED = {*range(1, 44), 45, 47, 48}


def test_the_readme_names_every_preset():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "presets.md").read_text()
    assert all(f"`{name}`" in text for name in preset_names())


def test_each_trap_has_its_test():
    marked = {int(n) for p in (ROOT / "tests").rglob("test_*.py") for n in re.findall(r"mark\.trap\((\d+)\)", p.read_text())}
    assert marked >= COVERED
