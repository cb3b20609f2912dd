"""No module is imported because a string named it: not in a config, a command line, weights, a study, a folder."""

import json
import os
import subprocess
import sys

import pytest

from helpers import TINY, process, write_digits, xhat
from xhat.files.tensors import read_tensors, write_tensors
from xhat.runs.places import WEIGHTS
from xhat.studies.study import STUDY_FILE

SPEC = {"class_path": "canary.X"}
INIT = {"class_path": "canary.X", "init_args": {"a": 1}}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Whether a module that can be imported was; on the path of this process and of those that it starts."""
    (tmp_path / "path").mkdir()
    flag = tmp_path / "executed"
    (tmp_path / "path" / "canary.py").write_text(f"open({str(flag)!r}, 'w').write('x')\nclass X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    yield flag.exists
    assert not flag.exists()
    assert "canary" not in sys.modules


def refused(code, err):
    assert code == 2, err
    assert err.count("\n") == 1, err


@pytest.mark.parametrize(
    "values",
    [
        {"terms": {"a": SPEC}},
        {"terms": {"a": INIT}},
        {"terms": SPEC},
        {"terms": "canary.X"},
        {"terms": "{a: {class_path: canary.X}}"},
        {"terms": {"a": "canary.X"}},
        {"terms": {"a": {"loss": SPEC}}},
        {"terms": {"a": {"loss": "canary.X"}}},
        {"terms": {"a": {"loss": "canary.X()"}}},
        {"terms": {"a": {"loss": "denoising()", "weight": SPEC}}},
        {"optimizer": SPEC},
        {"optimizer": "canary.X"},
        {"sampling": {"sampler": SPEC}},
        {"network": SPEC},
        {"network": "canary.X"},
        {"labels": SPEC},
        {"track": "canary.X"},
        {"track": SPEC},
        {"data": "canary.X()"},
        {"class_path": "canary.X"},
    ],
    ids=json.dumps,
)
def test_a_config_brings_no_code(values, canary, tmp_path, capsys):
    """JSON is YAML."""
    (tmp_path / "my.yaml").write_text(json.dumps(values))
    for command in (("train", tmp_path / "my.yaml", "--run", tmp_path / "run"), ("inspect", tmp_path / "my.yaml")):
        code, _, err = xhat(*command, capsys=capsys)
        refused(code, err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argument",
    [
        "--terms={a: {class_path: canary.X}}",
        "--terms={class_path: canary.X}",
        "--terms=canary.X",
        "--terms.a={class_path: canary.X}",
        "--terms.a=canary.X",
        "--terms.a.class_path=canary.X",
        "--terms.class_path=canary.X",
        "--terms.help=canary.X",
        "--terms.a.loss={class_path: canary.X}",
        "--terms.a.loss=canary.X",
        "--optimizer={class_path: canary.X}",
        "--optimizer=canary.X",
        "--optimizer.help=canary.X",
        "--optimizer.class_path=canary.X",
        "--sampling=canary.X",
        "--network=canary.X",
        "--labels=canary.X",
        "--track=canary.X",
        "--config=canary.X",
        "--print_config=canary.X",
        "--data=canary.X()",
    ],
)
def test_a_command_line_brings_no_code(argument, canary, tmp_path, capsys):
    code, _, err = xhat("train", "mnist", "--run", tmp_path / "run", argument, capsys=capsys)
    refused(code, err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("features", ["canary:X", "canary.X", "canary.X()", "X"])
def test_features_are_registered_parts(features, canary, tiny_run, digits, capsys):
    code, _, err = xhat("evaluate", tiny_run, "--data", digits, "--n", 4, "--features", features, capsys=capsys)
    refused(code, err)


@pytest.mark.parametrize(
    "change",
    [
        {"terms": {"a": SPEC}},
        {"terms": SPEC},
        {"optimizer": SPEC},
        {"network": "canary.X"},
        {"sampling": {"sampler": "canary.X"}},
    ],
    ids=json.dumps,
)
def test_weights_of_a_stranger_bring_no_code(change, canary, tiny_run, digits, tmp_path, capsys):
    metadata, tensors = read_tensors(tiny_run / WEIGHTS)
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), **change})
    path = tmp_path / WEIGHTS
    write_tensors(path, tensors, metadata)
    for command in (
        ("train", "--init", path, "--data", digits, "--run", tmp_path / "run", *TINY, "--max_steps", 1),
        ("sample", path, "--out", tmp_path / "s.npz"),
        ("evaluate", path, "--data", digits),
        ("gradients", path),
    ):
        code, _, err = xhat(*command, capsys=capsys)
        refused(code, err)


def test_a_study_of_a_stranger_brings_no_code(canary, tmp_path, capsys):
    for changes in ({"a": {"terms": {"x": SPEC}}}, {"a": {"terms.x": SPEC}}, {"a": {"optimizer": SPEC}}):
        (tmp_path / STUDY_FILE).write_text(json.dumps({"study": {"changes": changes, "base": "mnist"}, "failed": {}}))
        code, _, err = xhat("report", tmp_path, "--out", tmp_path / "page.html", capsys=capsys)
        refused(code, err)
        (tmp_path / "study.yaml").write_text(json.dumps({"changes": changes, "base": "mnist"}))
        code, _, err = xhat("compare", tmp_path / "study.yaml", "--out", tmp_path / "out", capsys=capsys)
        refused(code, err)


@pytest.mark.parametrize(
    "values", [{"terms": {"a": SPEC}}, {"optimizer": SPEC}, {"terms": "{a: {class_path: canary.X}}"}], ids=json.dumps
)
def test_values_in_python_bring_no_code(values, canary):
    """A program of the user's that imports xhat, whose own parsers may import what they like."""
    code = f"from xhat.config.parsing import config_of\nconfig_of({values!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert "ConfigError" in done.stderr


SHADOWS = ("yaml", "rich", "torch", "numpy", "typing", "difflib", "msgspec", "xhat_use_x", "signal", "traceback", "antigravity")


@pytest.mark.parametrize("launcher", [("-m", "xhat"), ("-u", "-m", "xhat"), ("-P", "-m", "xhat")])
def test_the_current_folder_brings_no_code(launcher, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    for name in SHADOWS:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r} + ' ')\n")
    digits = write_digits(tmp_path / "digits.npz")
    monkeypatch.chdir(here)
    job = process("train", "mnist", "--data", digits, "--run", tmp_path / "run", "--max_steps", 1, *TINY, launcher=launcher)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()


def test_a_program_of_the_users_keeps_its_own_folder(tmp_path):
    """python -m of another program, or a script beside its own modules, imports them after xhat as before."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("import xhat\nimport beside\n")
    (package / "__main__.py").write_text("import beside\nprint(beside.found)\n")
    (tmp_path / "beside.py").write_text("found = 'yes'\n")
    done = subprocess.run([sys.executable, "-m", "mine"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "yes\n", done.stderr
