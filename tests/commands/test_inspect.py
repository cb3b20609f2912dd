"""xhat inspect as a user meets it: one recipe, two recipes, runs, mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers import write_digits, xhat
from xhat.config.presets import preset_names


def inspected(capsys, tmp_path, *arguments):
    """The JSON object of a call that must succeed."""
    code, out, err = xhat("inspect", *arguments, "--picture", tmp_path / "w.png", "--json", capsys=capsys)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("preset", preset_names())
def test_inspect_every_preset(preset, tmp_path, capsys):
    code, out, _ = xhat("inspect", preset, "--picture", tmp_path / "w.png", "--json", capsys=capsys)
    assert code == 0
    result = json.loads(out)
    weight = np.array(result["effective_weighting"])
    assert weight.max() == pytest.approx(1)
    assert (weight > 0).all()
    assert Image.open(tmp_path / "w.png").size[0] > 500


def test_inspect_shows_what_is_changed(tmp_path, capsys):
    """The bound's own weighting is flat."""
    picture = tmp_path / "w.png"
    _, out, _ = xhat("inspect", "vdm-simple", "--picture", picture, "--json", capsys=capsys)
    assert np.allclose(json.loads(out)["effective_weighting"], 1, rtol=1e-4)
    _, out, _ = xhat(
        "inspect",
        "mnist",
        "--picture",
        picture,
        "--terms.denoise.loss",
        "denoising(space=v, weighting=constant)",
        capsys=capsys,
    )
    assert "weighting=constant" in out
    assert "effective weighting" in out


def test_one_value_of_a_term_can_be_changed(capsys, tmp_path):
    """As the README shows."""
    changed = ("--terms.denoise.weight", "0.5", "--terms.denoise.when", "every(2)", "--json")
    code, out, _ = xhat("inspect", "min-snr", "--picture", tmp_path / "w.png", *changed, capsys=capsys)
    assert code == 0
    term = json.loads(out)["terms"]["denoise"]
    assert term == {"loss": "denoising(space=x0, weighting=min_snr(5))", "weight": 0.5, "when": "every(2)"}


def test_inspect_measures_image_losses_with_multipliers(capsys, tmp_path):
    options = ("--batch_size", 8, "--terms.s.loss", "image_loss(total_variation)", "--terms.s.weight", "dual_ascent(0.2)")
    code, out, _ = xhat("inspect", "mnist", *options, "--picture", tmp_path / "w.png", capsys=capsys)
    assert code == 0
    assert "dual_ascent(0.2) · image_loss(total_variation)" in " ".join(out.split())
    assert "with s" in out
    code, out, _ = xhat("inspect", "mnist", *options, "--picture", tmp_path / "w.png", "--json", capsys=capsys)
    costs = json.loads(out)["costs"]
    assert costs["s"]["megabytes"] >= costs["base"]["megabytes"] > 1
    assert costs["s"]["seconds"] > 0
    code, out, _ = xhat("inspect", "mnist", "--picture", tmp_path / "w.png", "--json", capsys=capsys)
    assert json.loads(out)["costs"] == {}


def test_inspect_says_what_a_penalty_cannot_see(capsys, tmp_path):
    options = ("--image_size", 32, "--batch_size", 4, "--terms.s.loss", "image_loss(unreadable_digit)")
    code, _, err = xhat("inspect", "mnist", *options, "--picture", tmp_path / "w.png", capsys=capsys)
    assert code == 2
    assert 'term "s"' in err
    assert err.count("\n") == 1


def test_the_second_moment_is_that_of_the_data(capsys, tmp_path):
    result = inspected(capsys, tmp_path, "mnist", "--data", write_digits(tmp_path / "digits.npz"))
    images = np.load(tmp_path / "digits.npz")["images"] / 127.5 - 1
    assert result["second_moment"] == pytest.approx((images**2).mean(), rel=1e-5)
    assert inspected(capsys, tmp_path, "mnist")["second_moment"] == pytest.approx(0.925, abs=2e-3)


def test_a_run_is_inspected_by_its_folder(tiny_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = xhat("inspect", tiny_run, "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["network"] == "unet(widths=(8, 8), blocks=(1, 1), embedding=16)"
    assert (tmp_path / "tiny-weighting.png").exists()
    result = inspected(capsys, tmp_path, tiny_run, "mnist")
    assert result["differences"]["network"][1] == "unet(widths=(32, 64), blocks=(1, 4))"


def test_two_recipes_show_what_differs(capsys, tmp_path):
    result = inspected(capsys, tmp_path, "ddpm", "p2")
    assert result["differences"] == {
        "variance": ["fixed_large", "posterior"],
        "terms.simple.loss": ["denoising(space=noise)", "absent"],
        "terms.simple.weight": [1.0, "absent"],
        "terms.simple.when": ["always", "absent"],
        "terms.denoise.loss": ["absent", "denoising(space=noise, weighting=p2(gamma=1, k=1))"],
        "terms.denoise.weight": ["absent", 1.0],
        "terms.denoise.when": ["absent", "always"],
        "sampling.sampler": ["ddpm", "ddim"],
        "sampling.steps": [1000, 50],
    }
    ratio = np.array(result["effective_weighting"][1]) / np.array(result["effective_weighting"][0])
    expected = 1 / (1 + np.exp(result["logsnr"]))
    assert np.allclose(ratio / ratio[-1], expected / expected[-1], rtol=0.05)  # straight lines between levels


def test_curves_of_two_are_compared_at_the_same_levels(capsys, tmp_path):
    """Where one schedule has no such level there is nothing: VDM's ends at -5, the cosine goes on."""
    result = inspected(capsys, tmp_path, "vdm-simple", "mnist")
    level = np.array(result["logsnr"])
    first, second = (np.array(w, dtype=float) for w in result["effective_weighting"])
    assert np.array_equal(np.isnan(first), level <= -5)
    assert np.allclose(first[level > -5], 1)
    assert np.isfinite(second).all()


def test_facts_of_one_alone_are_told_apart(capsys, tmp_path):
    result = inspected(capsys, tmp_path, "vdm-simple", "ddpm")
    assert any("maximum likelihood" in remark for remark in result["only"][0])
    assert any("not monotone" in remark for remark in result["only"][1])
    assert result["both"] == ["amplified_in_x0"]
    code, out, _ = xhat("inspect", "vdm-simple", "ddpm", "--picture", tmp_path / "w.png", capsys=capsys)
    assert code == 0
    assert "Only vdm-simple" in out
    assert "Only ddpm" in out


def test_options_hold_for_both(capsys, tmp_path):
    result = inspected(capsys, tmp_path, "ddpm", "p2", "--schedule", "cosine_beta", "--sampling.steps", 7)
    assert [c["schedule"] for c in result["configs"]] == ["cosine_beta", "cosine_beta"]
    assert not {"schedule", "sampling.steps"} & result["differences"].keys()


def test_the_same_twice_differs_in_nothing(capsys, tmp_path):
    result = inspected(capsys, tmp_path, "mnist", "mnist")
    assert result["differences"] == {}
    assert result["only"] == [[], []]


@pytest.mark.parametrize("arguments", [("mnist",), ("edm2",), ("RUN", "mnist"), ("ddpm", "--target", "step_noise")])
def test_a_terminal_of_80_columns_is_enough(arguments, tiny_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = (tiny_run if a == "RUN" else a for a in arguments)
    code, out, _ = xhat("inspect", *arguments, "--picture", tmp_path / "w.png", capsys=capsys)
    assert code == 0
    assert "…" not in out
    lines = [line for line in out.splitlines() if "picture: " not in line]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("ddpm", "edn"), "did you mean edm"),
        (("ddpm", "mnist", "--target", "step_noise"), "mnist: "),
        (("ddpm", "--terms.other.weight", "2"), "terms.other.loss is needed"),
        (("ddpm", "edm", "--data", "nowhere"), "does not exist"),
        (("FOLDER",), "is a folder"),
        (("ddpm", "--picture", "no/such/w.png"), "does not exist"),
    ],
)
def test_a_mistake_is_one_line(arguments, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = xhat("inspect", *(tmp_path if a == "FOLDER" else a for a in arguments), capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert hint in err
    assert list(tmp_path.iterdir()) == []
