"""What the commands say of the data, and which they refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import TINY, write_pngs, xhat
from xhat.data.images import Found, Images
from xhat.data.summary import summary


def images_of(labels, names=(), side=16, channels=3, **found):
    n = len(labels)
    pixels = torch.arange(n * channels * side * side).remainder(256).to(torch.uint8).reshape(n, channels, side, side)
    return Images(pixels, torch.tensor(labels), max(labels) + 1, "x", names, Found(**found))


@pytest.mark.trap(39)
def test_the_line_about_the_data():
    both = images_of([0] * 21 + [1] * 22, ("cat", "dog"))
    training, aside = both.chosen(torch.arange(2, 43)), both.chosen(torch.arange(2))
    line = "data: 43 images 16x16 colour, pixel range 0 to 255, 2 classes (cat 21, dog 22)"
    assert summary(training, aside, True) == f"{line}; 2 of them held out"
    assert summary(both, None, False) == f"{line} that are not used (--labels true uses them); none held out"
    parts = replace(training, found=Found("train")), replace(aside, found=Found("test"))
    assert summary(*parts, True) == (
        "data: 41 images 16x16 colour (x), pixel range 0 to 255, 2 classes (cat 19, dog 22); 2 more held out"
    )
    unlabelled = Images(both.pixels[:, :1], None, 0, "x", found=Found(scale=(0, 4095), resized=3, unlabelled="why"))
    line = "data: 43 images 16x16 grey, 3 of them resized, pixel range 0 to 255 (made of 0 to 4095), no labels"
    assert summary(unlabelled, None, False) == f"{line}; none held out"
    assert summary(unlabelled, None, False, wanted=True) == f"{line} (why); none held out"


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        (list(range(26)) * 2, tuple(map(str, range(1, 27))), "26 classes (1 to 26, 2 images each)"),
        ([0, 0, 1], (), "2 classes (0 to 1, 1 to 2 images each)"),
        ([0, 0, 1], ("5", "9"), "2 classes (5 2, 9 1)"),
        (list(range(20)), tuple("abcdefghijklmnopqrst"), "20 classes (a 1, b 1, c 1, d 1, e 1, f 1, ..., t 1)"),
        ([0, 1], ("a\nb", "c" * 90), f"2 classes (a b 1, {'c' * 24}... 1)"),
        ([0, 0], ("only",), "1 class (only 2)"),
    ],
)
def test_classes_are_told_in_one_short_line(labels, names, told):
    assert told in summary(images_of(labels, names, side=4), None, True)


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
