"""What the commands say of the data, and which they refuse."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers import TINY, write_pngs, xhat


@pytest.mark.trap(39)
def test_labels_that_are_asked_for_must_be_there(tmp_path, capsys):
    np.save(tmp_path / "u.npy", np.zeros((40, 8, 8), np.uint8) + 200)
    command = ("train", "mnist", "--run", tmp_path / "run", "--data", tmp_path / "u.npy", "--max_steps", 1, *TINY)
    code, out, err = xhat(*command, "--labels", "true", capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "an .npz with an array labels" in err
    assert not (tmp_path / "run").exists()
    code, _, err = xhat(*command, capsys=capsys)  # the preset uses labels where there are some
    assert code == 0
    assert "no labels (an .npz with" in err


def test_train_says_once_what_it_trains_on(tmp_path, capsys):
    folder = write_pngs(tmp_path / "d", 20, (8, 8))
    Image.new("RGB", (2, 2)).save(folder / "pixel.png")
    assert xhat("train", "mnist", "--run", tmp_path / "run", "--data", folder, "--max_steps", 1, *TINY)[0] == 0
    _, err = capsys.readouterr()
    assert err.count("pixel.png") == 1
    assert err.count("data: 21 images 8x8 colour") == 1


@pytest.mark.slow
def test_samples_may_be_a_folder(mnist_run, tmp_path, capsys):
    folder = write_pngs(tmp_path / "s", 5, (28, 28), mode="L")
    code, out, err = xhat("evaluate", mnist_run, "--samples", folder, "--images", 2, "--json", capsys=capsys)
    assert (code, err) == (0, "")
    assert json.loads(out)["samples"] == 5
    Image.new("L", (30, 28), 200).save(folder / "wide.png")
    code, _, err = xhat("evaluate", mnist_run, "--samples", folder, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds 1 image of another size: the run makes 28x28" in err


def test_one_image_is_too_few_to_measure(mnist_run, tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.full((1, 28, 28), 200, np.uint8))
    np.save(tmp_path / "two.npy", np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8))
    for options in (
        ("--data", tmp_path / "one.npy"),
        ("--samples", tmp_path / "one.npy"),
        ("--ode", "--data", tmp_path / "one.npy"),
    ):
        code, out, err = xhat("evaluate", mnist_run, *options, capsys=capsys)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "holds one image" in err
    options = ("--data", tmp_path / "two.npy", "--samples", tmp_path / "two.npy", "--images", 2)
    code, out, _ = xhat("evaluate", mnist_run, *options, capsys=capsys)
    assert code == 0
    assert "nan" not in out
