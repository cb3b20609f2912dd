"""docs/fine-tune.md: each of its commands, in order, on a tiny pipeline and a few steps."""

import re
import shlex
from pathlib import Path

import pytest
import tiny
from test_commands_of_pipelines import write_pictures

from helpers import xhat as run_command

PAGE = Path(__file__).parents[2] / "docs" / "fine-tune.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORT = {"--max_steps": "2", "--lora": "2"}
MORE = {"train": ["--image_size", "16", "--batch_size", "2", "--sampling.steps", "2"], "sample": ["--steps", "2"]}


def commands(text):
    joined = text.replace("\\\n", " ")
    return [shlex.split(line.removeprefix("$ ")) for line in joined.splitlines() if line.startswith("$ xhat ")]


@pytest.mark.slow
def test_the_page_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny.stable_diffusion().save_pretrained("sd15")
    write_pictures(tmp_path / "pictures", 6)
    Path("prompts.txt").write_text("a red cloth\na blue cloth\n")
    blocks = BLOCK.findall(PAGE.read_text())
    for kind, text in blocks:
        if kind == "python":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
    ran = []
    for kind, text in blocks:
        for _, name, *words in commands(text) if kind == "console" else ():
            given = [SHORT.get(before, word) for before, word in zip(["", *words], words, strict=False)]
            code, _, err = run_command(name, *given, *MORE.get(name, []), capsys=capsys)
            assert code == 0, f"{name} {' '.join(given)}: {err}"
            ran.append(name)
    assert ran.count("train") >= 3
    assert {"sample", "export"} <= set(ran)
    for made in ("dog.npz", "many.npz", "style/pytorch_lora_weights.safetensors", "style/README.md"):
        assert (tmp_path / made).exists(), made
