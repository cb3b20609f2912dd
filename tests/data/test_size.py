"""Sizes that are not square: width x height, from the command line to the samples."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import TINY, write_pngs, xhat
from xhat.data.load import load
from xhat.data.shape import DataShape
from xhat.data.size import said, size_of
from xhat.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "size"), [(None, None), (64, (64, 64)), ("64", (64, 64)), ("64x96", (96, 64)), ("64 × 96", (96, 64))]
)
def test_width_comes_first(given, size):
    assert size_of(given) == size
    assert size is None or size_of(said(size)) == size


@pytest.mark.parametrize("given", ["64x", "x", "axb", "1x2x3", "64x3", "5000", 0, -8, "64.5"])
def test_others_are_refused(given):
    with pytest.raises(ConfigError, match="image_size"):
        size_of(given)


def test_images_are_resized_and_cropped_to_it(tmp_path):
    half = np.zeros((20, 40, 3), np.uint8)
    half[:, 20:] = 200
    (tmp_path / "d").mkdir()
    Image.fromarray(half).save(tmp_path / "d" / "a.png")
    np.save(tmp_path / "a.npy", half[None])
    for data in ("d", "a.npy"):
        images = load(str(tmp_path / data), "16x8")
        assert images.pixels.shape[2:] == (8, 16)
        row = images.pixels[0, 0, 4].int()
        assert (row[:6].max(), row[-6:].min()) == (0, 200)


def test_a_shape_writes_its_size_as_a_config_does():
    assert DataShape(3, (96, 64), None).image_size == "64x96"
    assert DataShape(3, 64, None).image_size == 64
    assert DataShape(3, (64,), None).image_size is None


@pytest.mark.slow
@pytest.mark.parametrize("network", ["unet(widths=(8, 16), blocks=(1, 1))", "dit(width=32, depth=1, heads=2)"])
def test_a_run_of_them_from_training_to_evaluation(tmp_path, capsys, network):
    root = write_pngs(tmp_path / "d", 40, (30, 20))
    run, options = tmp_path / "run", ("--image_size", "16x8", "--network", network, "--max_steps", 2)
    code, _, err = xhat("train", "mnist", "--data", root, "--run", run, *TINY[2:], *options)
    assert code == 0
    code, out, err = xhat("sample", run, "--n", 4, "--out", tmp_path / "s.npz", capsys=capsys)
    assert code == 0, err
    assert np.load(tmp_path / "s.npz")["images"].shape == (4, 8, 16, 3)
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > picture.height
    code, out, err = xhat("evaluate", run, "--samples", tmp_path / "s.npz", "--images", 2, "--json", capsys=capsys)
    assert code == 0, err
    assert json.loads(out)["samples"] == 4
    np.savez(tmp_path / "other.npz", images=np.full((4, 16, 8, 3), 200, np.uint8))
    code, _, err = xhat("evaluate", run, "--samples", tmp_path / "other.npz", capsys=capsys)
    assert code == 2
    assert "images of another size, 8x16: the run makes 16x8" in err


def test_networks_take_height_and_width():
    import xhat as package

    z, t = torch.randn(2, 3, 8, 16), torch.rand(2)
    for net in (
        package.UNet(3, size=(8, 16), widths=(8, 16), blocks=(1, 1)),
        package.DiT(3, size=(8, 16), width=32, heads=2, depth=1),
    ):
        assert net(z, t).shape == z.shape
    with pytest.raises(ValueError, match="multiples of 4, not 8x18"):
        package.UNet(3, size=(8, 18))
    with pytest.raises(ValueError, match="multiples of its patch 4"):
        package.DiT(3, size=(8, 18))
