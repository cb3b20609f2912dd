"""What the README shows runs as it stands, and the list of traps is covered."""

import re
from pathlib import Path

import pytest
import torch

from xhat.cli import main
from xhat.presets import preset_names

ROOT = Path(__file__).parent.parent
COVERED = {*range(1, 44), 45, 47, 48}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_library_example_runs_and_every_weight_gets_a_gradient():
    (example,) = blocks("python")
    scope = {"images": torch.rand(4, 1, 28, 28) * 2 - 1, "step": 4}
    exec(example, scope)
    assert set(scope["losses"]) == {"loss", "denoise", "smooth"}
    assert any(p.grad.abs().sum() > 0 for p in scope["net"].parameters())


def test_the_examples_of_the_created_image_run():
    """The docs page's objective, and its residual on two channels."""
    text = (ROOT / "docs" / "created-image.md").read_text()
    objective, physics = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {"images": torch.rand(2, 1, 28, 28) * 2 - 1, "step": 0}
    exec(objective, scope)
    assert set(scope["losses"]) == {"loss", "denoise", "smooth", "smooth.lambda", "smooth.mean"}
    exec(physics, scope)
    assert scope["residual"](torch.rand(2, 2, 64, 64)).shape == (2,)


def test_every_command_of_the_readme_exists(capsys):
    """The options of each xhat line are options of that command."""
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("xhat")]
    assert len(lines) >= 5
    for line in lines:
        command, *rest = line.split("#")[0].split()[1:]
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert all(word in text for word in rest if word.startswith("--")), line


def test_the_readme_names_every_preset():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "presets.md").read_text()
    assert all(f"`{name}`" in text for name in preset_names())


def test_links_and_pictures_of_the_readme_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_each_trap_has_its_test():
    marked = {int(n) for p in (ROOT / "tests").rglob("test_*.py") for n in re.findall(r"mark\.trap\((\d+)\)", p.read_text())}
    assert marked >= COVERED
