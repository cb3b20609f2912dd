"""No name of the user's is a pattern, a format, a markup or an option: every command takes it for what it is."""

import os

import numpy as np
import pytest
import yaml

from helpers import TINY, write_digits, write_pngs, xhat
from xhat.runs.metrics import read_metrics

EVERYDAY = ["my[1]", "a*b?"]
OTHERS = [
    "two words",
    "%s%d%(x)s",
    "{x}{}",
    "~",
    "~root",
    "line\nbreak",
    "[bold]x",
    "$HOME",
    "Ünï·☃",
    "a'b\"c",
    "#x: y",
    "-",
    "=",
    "@x",
    "..x",
]


@pytest.mark.parametrize("name", [*EVERYDAY, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_name_is_a_name(name, tmp_path, monkeypatch, capsys):
    """Recipe, data, run, outputs and study of the same strange name, beside what a pattern would have found."""
    monkeypatch.chdir(tmp_path)
    for decoy in ("my1", "axb", "aXbX"):
        (tmp_path / f"{decoy}.yaml").write_text("max_steps: 1000000\n")
        (tmp_path / decoy).mkdir()
    options = {key.removeprefix("--"): value for key, value in zip(TINY[::2], TINY[1::2], strict=True)}
    values = {"data": f"{name}.npz", "max_steps": 3, "seed": 7, "held_out": 0.0}
    nested = {"sampling": {"steps": int(options.pop("sampling.steps"))}}
    values |= {key: int(value) if value.isdecimal() else value for key, value in options.items()} | nested
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    write_digits(tmp_path / f"{name}.npz")
    here = os.path.join(".", "")  # what begins with a dash is an option to every tool

    def run(*arguments):
        code, out, err = xhat(*arguments, capsys=capsys)
        assert code == 0, err
        return out

    run("train", f"{here}{name}.yaml", "--run", f"{here}{name}")
    assert yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))["seed"] == 7
    run("train", "--run", f"{here}{name}", "--resume", "--max_steps", 4)
    assert [row["step"] for row in read_metrics(tmp_path / name)] == [1, 2, 3, 4]
    run("sample", f"{here}{name}", "--n", 4, "--out", f"{here}{name} samples.npz")
    assert np.load(tmp_path / f"{name} samples.npz")["images"].shape == (4, 8, 8, 1)
    run("evaluate", f"{here}{name}", "--samples", f"{here}{name} samples.npz", "--images", 4, "--json")
    run("evaluate", f"{here}{name}", "--bound", "--n", 4, "--json")
    run("inspect", f"{here}{name}", "--picture", f"{here}{name}.png")
    run("gradients", f"{here}{name}", "--n", 4, "--chain", 2)
    run("report", f"{here}{name}", "--n", 4, "--out", f"{here}{name}.html")
    assert name.replace("\n", " ").split()[0][:1] in (tmp_path / f"{name}.html").read_text(encoding="utf-8")
    run("train", "--init", f"{here}{name}", "--run", f"{here}{name} 2", "--max_steps", 1)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == sorted(["my1", "axb", "aXbX", name, f"{name} 2"])


@pytest.mark.parametrize("name", EVERYDAY)
def test_a_study_and_a_folder_of_images_of_such_a_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pngs(tmp_path / name, 8, classes=2)
    common = {"data": name, "image_size": 8, "max_steps": 1, "batch_size": 4, "compile": "off", "sampling.steps": 2}
    common["network"] = "unet(widths=(8, 8), blocks=(1, 1), embedding=16)"
    study = {"base": "mnist", "common": common, "changes": {name: None}, "samples": 4}
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(study))
    code, _, err = xhat("compare", f"{name}.yaml", "--out", f"{name} out", capsys=capsys)
    assert code == 0, err
    assert xhat("report", f"{name} out", "--out", f"{name}.html")[0] == 0


def test_a_recipe_that_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    """my[1].yaml is not my1.yaml, and its absence is not the demo."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my1.yaml").write_text("max_steps: 1\n")
    code, _, err = xhat("train", "my[1].yaml", "--run", "run", capsys=capsys)
    assert (code, err) == (2, "xhat train: config my[1].yaml does not exist\n")
