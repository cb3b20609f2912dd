"""xhat sample --guide: samples are pulled down a penalty, or towards what was measured of them."""

import numpy as np
import pytest

from helpers import TINY, xhat
from xhat.losses.penalties import total_variation


def drawn(run, out, *options):
    assert xhat("sample", run, "--n", 4, "--steps", 6, "--sampler", "ddpm", "--out", out, "--force", *options)[0] == 0
    return np.load(out)


@pytest.fixture
def measured(tmp_path):
    """Two images, a dark and a light one, with nothing in the middle."""
    images = np.stack([np.full((8, 8, 1), value, np.uint8) for value in (30, 220)])
    np.savez(tmp_path / "m.npz", images=images)
    return tmp_path / "m.npz"


def smoothness(file):
    import torch

    return float(total_variation(torch.as_tensor(file["images"]).movedim(-1, 1) / 127.5 - 1).mean())


def test_a_penalty_makes_samples_smoother_than_the_models_own(tiny_run, tmp_path):
    own, pulled = (
        drawn(tiny_run, tmp_path / "a.npz"),
        drawn(tiny_run, tmp_path / "b.npz", "--guide", "dps(total_variation, 3)"),
    )
    assert smoothness(pulled) < smoothness(own)
    assert pulled["labels"].tolist() == [0, 1, 2, 3]


def test_in_a_sampler_of_a_config_it_is_the_same(tiny_run, tmp_path):
    a = drawn(tiny_run, tmp_path / "a.npz", "--guide", "dps(total_variation, 3)")
    b = drawn(tiny_run, tmp_path / "b.npz", "--sampler", "guided_by(total_variation, 3, ddpm)")
    assert np.array_equal(a["images"], b["images"])


@pytest.mark.parametrize(
    "guide",
    ["repaint(measured, hide((2, 6), (2, 6)), 2)", "mmps(linear(hide((2, 6), (2, 6)), measured, 0.01), 1)"],
    ids=["repaint", "mmps"],
)
def test_each_sample_is_its_own_measurement_restored(tiny_run, tmp_path, measured, guide):
    found = drawn(tiny_run, tmp_path / "a.npz", "--guide", guide, "--measured", measured)
    assert "labels" not in found, "what is measured is of no class"
    edges = found["images"][:, 0, :, 0].mean(1)
    assert np.allclose(edges, [30, 220, 30, 220], atol=12)


def test_a_smaller_image_is_made_larger(tiny_run, tmp_path):
    small = np.random.default_rng(0).integers(60, 190, (4, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "m.npy", small)
    guide = ("--guide", "mmps(linear(shrink(2), measured, 0.01), 4)", "--measured", tmp_path / "m.npy")
    found = drawn(tiny_run, tmp_path / "a.npz", "--label", 1, *guide)
    assert found["labels"].tolist() == [1] * 4
    means = found["images"][..., 0].reshape(4, 4, 2, 4, 2).mean((2, 4))
    assert np.abs(means - small).mean() < 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--guide", "mmps(linear(blur(2), measured))"), "needs something measured: name its file, --measured FILE"),
        (("--guide", "total_variatio"), "did you mean total_variation"),
        (("--guide", "cosine_similarity_of_nothing(3)"), "unknown name"),
        (("--guide", "ddim"), "is neither a penalty of images alone nor one of"),
        (("--measured", "M"), "say what of"),
        (("--guide", "total_variation", "--measured", "M"), "--guide does not use it"),
        (("--guide", "repaint(measured, hide(rows=(2, 6)))", "--measured", "no.npz"), "name a file .npz"),
        (
            ("--guide", "repaint(measured, hide(rows=(2, 6)))", "--measured", "M", "--guidance", 2),
            "name it, --label",
        ),
        (("--guide", "mmps(linear(shrink(2), measured))", "--measured", "M"), "the operator makes (4, 1, 4, 4) of the samples"),
        (("--guide", "mmps(linear(shrink(3), measured))", "--measured", "M"), "shrink(3) does not divide"),
        (("--guide", "mmps(linear(hide(rows=(3, 3)), measured))", "--measured", "M"), "hide takes rows and columns"),
    ],
)
def test_what_cannot_be_had_is_one_line(tiny_run, tmp_path, measured, capsys, options, said):
    words = [measured if word == "M" else word for word in options]
    code, _, err = xhat("sample", tiny_run, "--n", 4, "--out", tmp_path / "a.npz", *words, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1), err
    assert said in err
    assert not (tmp_path / "a.npz").exists()


def test_measurements_of_no_kind_are_refused(tiny_run, tmp_path, capsys):
    for name, array, said in (
        ("a", {"x": np.zeros((2, 8, 8), np.uint8)}, "name an array in it images or samples"),
        ("b", {"images": np.zeros((2, 8, 8, 3), np.uint8)}, "8-bit images are N x H x W x 1"),
        ("c", {"images": np.zeros((0, 8, 8), np.uint8)}, "holds no measurement"),
        ("d", {"images": np.zeros((2, 8, 8), np.int64)}, "8-bit images or floats"),
    ):
        np.savez(tmp_path / f"{name}.npz", **array)
        words = ("--guide", "repaint(measured, hide(rows=(2, 6)))", "--measured", tmp_path / f"{name}.npz")
        code, _, err = xhat("sample", tiny_run, "--out", tmp_path / "s.npz", *words, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err


def test_a_run_that_never_saw_a_missing_label_needs_one(tmp_path, digits, measured, capsys):
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--run", run, "--data", digits, "--label_dropout", 0, "--max_steps", 1, *TINY)[0] == 0
    capsys.readouterr()
    words = ("--guide", "repaint(measured, hide(rows=(2, 6)))", "--measured", measured)
    code, _, err = xhat("sample", run, "--out", tmp_path / "s.npz", *words, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "never trained without a label" in err
    assert xhat("sample", run, "--n", 2, "--label", 1, "--steps", 2, "--out", tmp_path / "s.npz", *words)[0] == 0
