"""One class is drawn by the name that the data give it."""

from dataclasses import replace

import numpy as np
import pytest

from helpers import TINY, write_pngs, xhat
from xhat import DDIM, generate, load, uniform_times


@pytest.fixture(scope="module")
def named_run(tmp_path_factory):
    """A run on two classes with names, and what training said."""
    place = tmp_path_factory.mktemp("named")
    write_pngs(place / "d", 21, (8, 8), classes=2)
    assert xhat("train", "mnist", "--run", place / "run", "--data", place / "d", "--max_steps", 2, *TINY)[0] == 0
    return place / "run"


@pytest.mark.trap(39)
@pytest.mark.parametrize(("label", "number"), [("class1", 1), ("class0", 0), ("1", 1)])
def test_one_class_is_drawn_by_its_name_or_number(named_run, tmp_path, label, number):
    assert load(named_run).shape.names == ("class0", "class1")
    assert xhat("sample", named_run, "--n", 4, "--label", label, "--out", tmp_path / "s.npz")[0] == 0
    drawn = np.load(tmp_path / "s.npz")
    assert drawn["labels"].tolist() == [number] * 4
    assert drawn["classes"].tolist() == ["class0", "class1"]


@pytest.mark.trap(39)
def test_renumbered_labels_are_called_what_the_data_call_them(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), labels=np.arange(60) % 3 + 1)
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--run", run, "--data", tmp_path / "d.npz", "--max_steps", 1, *TINY)[0] == 0
    assert xhat("sample", run, "--n", 6, "--steps", 2, "--out", tmp_path / "all.npz")[0] == 0
    assert np.load(tmp_path / "all.npz")["labels"].tolist() == [1, 2, 3, 1, 2, 3]
    assert xhat("sample", run, "--n", 2, "--label", 3, "--steps", 2, "--out", tmp_path / "one.npz")[0] == 0
    assert np.load(tmp_path / "one.npz")["labels"].tolist() == [3, 3]
    capsys.readouterr()
    code, _, err = xhat("sample", run, "--label", 0, "--out", tmp_path / "no.npz", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "--label 0: not one of the 3 classes that the run knows: they are 1, 2, 3" in err


def test_a_chosen_class_is_the_same_noise_with_another_label(tiny_run):
    run = load(tiny_run)
    times = uniform_times(run.denoiser.schedule, 2)
    images, labels = generate(run.denoiser, DDIM(), run.shape, 4, times=times, label=2, batch=3)
    assert labels.tolist() == [2] * 4
    every, _ = generate(run.denoiser, DDIM(), run.shape, 4, times=times)
    assert (images[2].int() - every[2].int()).abs().max() <= 1
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="4 classes"):
            generate(run.denoiser, DDIM(), run.shape, 1, times=times, label=wrong)
    with pytest.raises(ValueError, match="no classes"):
        generate(run.denoiser, DDIM(), replace(run.shape, classes=None), 1, times=times, label=0)


def test_a_class_of_a_run_without_classes_is_refused(tmp_path, digits, capsys):
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--run", run, "--data", digits, "--labels", "false", "--max_steps", 1, *TINY)[0] == 0
    assert "4 classes (0 to 3, 16 images each) that are not used" in capsys.readouterr().err
    code, _, err = xhat("sample", run, "--label", 1, "--out", tmp_path / "s.npz", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "trained without labels" in err
