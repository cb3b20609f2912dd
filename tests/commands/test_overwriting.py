"""Commands replace what they made themselves; anything else that is there needs --force."""

import numpy as np
import pytest
import yaml
from PIL import Image

from helpers import xhat
from xhat.files.ours import is_ours
from xhat.runs.places import WEIGHTS

SMALL = ("--n", 4, "--steps", 2)


@pytest.fixture
def outputs(tiny_run, digits, tmp_path):
    """Each command that writes a file, and the file."""
    return {
        "sample": (("sample", tiny_run, *SMALL, "--out", tmp_path / "out.npz"), tmp_path / "out.npz"),
        "picture beside samples": (("sample", tiny_run, *SMALL, "--out", tmp_path / "out.npz"), tmp_path / "out.png"),
        "inspect": (("inspect", "mnist", "--data", digits, "--picture", tmp_path / "out.png"), tmp_path / "out.png"),
        "gradients": (("gradients", tiny_run, "--n", 4, "--picture", tmp_path / "out.png"), tmp_path / "out.png"),
    }


@pytest.mark.parametrize("name", ["sample", "picture beside samples", "inspect", "gradients"])
def test_a_file_of_somebody_elses_needs_force(name, outputs, capsys):
    command, path = outputs[name]
    if path.suffix == ".png":
        Image.new("L", (4, 4)).save(path)
    else:
        path.write_bytes(b"mine")
    before = path.read_bytes()
    code, _, err = xhat(*command, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{path} exists already: name another file, move it away, or add --force" in err
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is written before it is refused"
    assert xhat(*command, "--force")[0] == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize("name", ["inspect", "gradients"])
def test_a_picture_of_ours_is_made_anew(name, outputs):
    command, path = outputs[name]
    assert xhat(*command)[0] == 0
    assert is_ours(path)
    assert xhat(*command)[0] == 0


def test_samples_are_never_replaced_without_force(outputs, tmp_path, capsys):
    """Ours or not: hours may be in them. What a kill left, the picture without the array, is completed."""
    command, path = outputs["sample"]
    assert xhat(*command)[0] == 0
    first = np.load(path)["images"]
    assert xhat(*command, "--seed", 1)[0] == 2
    assert (np.load(path)["images"] == first).all()
    path.unlink()
    assert xhat(*command)[0] == 0
    assert (np.load(path)["images"] == first).all()


def test_a_report_replaces_reports_alone(tiny_run, tmp_path, capsys):
    for path in (tiny_run / WEIGHTS, tiny_run / "config.yaml"):
        before = path.read_bytes()
        code, _, err = xhat("report", tiny_run, "--out", path, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{path} exists already" in err
        assert path.read_bytes() == before
    (tmp_path / "page.html").write_text("<p>mine</p>")
    assert xhat("report", tiny_run, "--out", tmp_path / "page.html", capsys=capsys)[0] == 2
    assert (tmp_path / "page.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("name", ["study.json", "a"])
def test_a_study_writes_into_no_folder_that_is_in_use(name, digits, tmp_path, capsys):
    out, study = tmp_path / "out", tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"base": "mnist", "common": {"data": str(digits), "max_steps": 1}, "changes": {"a": None}}))
    out.mkdir()
    (out / name).mkdir() if name == "a" else (out / name).write_text('{"mine": 1}')
    code, _, err = xhat("compare", study, "--out", out, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "choose another --out, or move it away" in err
    assert [p.name for p in out.iterdir()] == [name]


def test_a_link_in_place_of_the_lock_is_not_followed(digits, tmp_path, capsys):
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir()
    (run / ".lock").symlink_to(target)
    code, _, err = xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 1, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write" in err
    assert not target.exists()
