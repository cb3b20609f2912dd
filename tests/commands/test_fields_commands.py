"""Fields, signals, volumes and tables from the command line: train, resume, sample, evaluate, report, in the user's units."""

import json

import numpy as np
import pytest

from helpers import TINY, xhat
from xhat.config.parsing import read_config

KINDS = {"fields": (2, 8, 8), "signals": (1, 32), "volumes": (1, 16, 16, 16), "tables": (5,)}
SCALE = {"fields": [3.0, 1e-4], "signals": [50.0], "volumes": [0.2], "tables": [1.0, 2.0, 3.0, 4.0, 5.0]}
PENALTY = '''
import xhat

@xhat.register
def mean_square(fields):
    """In physical units: the mean of the squares, which normalised data have as 1."""
    return fields.flatten(1).square().mean(1)
'''


def network(kind):
    return "mlp(width=16, depth=1)" if kind == "tables" else TINY[1]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """A run of two steps of each kind, and its data."""
    place, kind = tmp_path_factory.mktemp(request.param), request.param
    shape = KINDS[kind]
    values = np.random.default_rng(0).normal(size=(60, *shape)) + 10
    values *= np.array(SCALE[kind]).reshape(-1, *(1,) * (len(shape) - 1))
    np.save(place / "x.npy", values.astype(np.float32))
    data, run = f"fields({place / 'x.npy'})", place / "run"
    options = ("--network", network(kind), "--max_steps", 2, "--held_out", 0.4, *TINY[2:])
    assert xhat("train", "mnist", "--data", data, "--run", run, *options)[0] == 0
    return kind, run, values


def test_samples_are_in_the_users_units(trained, tmp_path, capsys):
    kind, run, values = trained
    code, out, err = xhat("sample", run, "--n", 6, "--out", tmp_path / "s.npy", capsys=capsys)
    assert (code, err) == (0, "")
    samples = np.load(tmp_path / "s.npy")
    assert samples.dtype == np.float32
    assert samples.shape == (6, *KINDS[kind])
    axes = (0, *range(2, samples.ndim))
    deviation = np.abs(samples.mean(axes) - values.mean(axes)) / values.std(axes)
    assert (deviation < 2).all()  # ten standard deviations away, were they not put back
    assert (tmp_path / "s.png").exists() == (kind != "tables")
    assert ("to look at" in out) == (kind != "tables")
    assert xhat("sample", run, "--n", 6, "--out", tmp_path / "s.npz")[0] == 0
    assert np.array_equal(np.load(tmp_path / "s.npz")["samples"], samples)


def test_a_picture_of_training_shows_them(trained):
    kind, run, _ = trained
    assert bool(list((run / "samples").glob("*.png"))) == (kind != "tables")


def test_they_are_evaluated_by_spectra_and_histograms(trained, tmp_path, capsys):
    kind, run, values = trained
    np.save(tmp_path / "same.npy", values[:40].astype(np.float32))
    found = {}
    for name, options in (("own", ("--n", 8)), ("same", ("--samples", tmp_path / "same.npy"))):
        code, out, err = xhat("evaluate", run, *options, "--images", 4, "--json", capsys=capsys)
        assert (code, err) == (0, "")
        found[name] = json.loads(out)
    assert found["own"]["fid"] is None
    assert found["same"]["histogram_sd"] < 3 * found["same"]["histogram_sd_by_chance"]
    assert (found["own"]["spectrum_db"] is None) == (kind == "tables")
    if kind != "tables":
        assert found["same"]["spectrum_db"] < 3 * found["same"]["spectrum_db_by_chance"]
    code, out, _ = xhat("evaluate", run, "--n", 8, "--images", 4, capsys=capsys)
    assert code == 0
    assert "histograms, SD" in out
    assert "per normalised value" in out
    np.save(tmp_path / "other.npy", values[:, :1])
    if KINDS[kind][0] > 1:
        code, _, err = xhat("evaluate", run, "--samples", tmp_path / "other.npy", capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert "the run makes" in err


FEATURES = """
import torch
import xhat


@xhat.register.features
class mean_of_channels(torch.nn.Module):
    def forward(self, fields):
        return fields.flatten(2).mean(2)
"""


@pytest.mark.parametrize("trained", ["fields"], indirect=True)
def test_the_frontier_compares_samples_and_data_in_the_same_units(trained, tmp_path, capsys):
    """Its distance by the run's own sampler and steps is the one that evaluating the run finds."""
    _, run, _ = trained
    (tmp_path / "own.py").write_text(FEATURES)
    own = ("--use", tmp_path / "own.py", "--features", "mean_of_channels", "--n", 30, "--json")
    code, out, err = xhat("evaluate", run, *own, "--images", 4, capsys=capsys)
    assert (code, err) == (0, "")
    fid = json.loads(out)["fid"]
    steps = read_config(run / "config.yaml").sampling.steps
    code, out, err = xhat("evaluate", run, *own, "--frontier", "--steps", steps, capsys=capsys)
    assert (code, err) == (0, "")
    points = json.loads(out)["points"]
    (same,) = (p["fid"] for p in points if p["sampler"] == points[0]["sampler"] and p["steps"] == steps)
    assert same == pytest.approx(fid, rel=1e-4)


@pytest.mark.parametrize("how", ["--bound", "--ode"])
def test_their_likelihood_is_a_density_in_the_users_units(trained, capsys, how):
    _, run, _ = trained
    code, out, err = xhat("evaluate", run, how, "--n", 4, "--json", capsys=capsys)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["density"] is True
    code, out, _ = xhat("evaluate", run, how, "--n", 4, capsys=capsys)
    assert "of the density of the values in the units of the data" in out


def test_a_run_goes_on_and_its_data_are_known(trained, tmp_path, capsys):
    kind, _, values = trained
    copy = tmp_path / "run"
    np.save(tmp_path / "x.npy", values.astype(np.float32))
    np.save(tmp_path / "y.npy", values.astype(np.float32) + 1)
    command = ("train", "--run", copy, "--resume", "--max_steps", 3)
    options = ("--network", network(kind), "--max_steps", 2, *TINY[2:])
    assert xhat("train", "mnist", "--data", f"fields({tmp_path / 'x.npy'})", "--run", copy, *options)[0] == 0
    code, _, err = xhat(*command, "--data", f"fields({tmp_path / 'y.npy'})", capsys=capsys)
    assert code == 2
    assert "the data are not those" in err
    assert xhat(*command)[0] == 0


@pytest.mark.slow
def test_they_are_inspected_profiled_and_reported(trained, tmp_path, capsys):
    kind, run, _ = trained
    assert xhat("inspect", run, "--picture", tmp_path / "w.png")[0] == 0
    assert xhat("gradients", run)[0] == 0
    code, _, err = xhat("report", run, "--out", tmp_path / "r.html", capsys=capsys)
    assert code == 0, err
    page = (tmp_path / "r.html").read_text()
    assert "histograms" in page
    assert ("spectra, dB" in page) == (kind != "tables")


def test_penalties_are_in_physical_units(tmp_path, capsys):
    values = (np.random.default_rng(0).normal(size=(60, 1, 8, 8)) * 3 + 100).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    (tmp_path / "mine.py").write_text(PENALTY)
    run = tmp_path / "run"
    term = '{"mine": {"loss": "image_loss(mean_square)", "weight": 1e-6}}'
    own = ("--use", tmp_path / "mine.py", "--terms", term, "--times", "stratified", "--max_steps", 1, *TINY)
    assert xhat("train", "mnist", "--data", f"fields({tmp_path / 'x.npy'})", "--run", run, *own)[0] == 0
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    capsys.readouterr()
    assert row["terms"]["mine"] > 2  # 100² times a weight of at most 1, and not 1 times that
    code, out, err = xhat("evaluate", run, "--use", tmp_path / "mine.py", "--n", 8, "--images", 4, "--json", capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    real = float((values.astype(np.float64) ** 2).mean())
    assert found["penalties_real"]["mine"] == pytest.approx(real, rel=0.01)
    assert found["penalties"]["mine"] == pytest.approx(real, rel=0.2)


@pytest.mark.parametrize(
    ("data", "more", "line"),
    [
        ("fields(none.npy)", (), "does not exist"),
        ("fields({place}/x.npy, units=standart)", (), "unknown name"),
        ("fields({place}/x.npy)", ("--network", "mlp"), "of vectors: of signals, images and volumes choose unet"),
        ("fields({place}/t.npy)", (), "the data are vectors, choose network mlp"),
        ("fields({place}/odd.npy)", (), "crop or pad them"),
        ("fields({place}/nan.npy)", (), "values that are not finite, number 3"),
        ("fields({place}/x.npy, 3)", (), "files must be a str"),
        ("fields({place}/x.npy, unit=standard)", (), "did you mean units?"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys, data, more, line):
    values = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "t.npy", values[:, 0, 0])
    np.save(tmp_path / "odd.npy", values[:, :, 0, :7])
    values[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", values)
    command = ("train", "mnist", "--data", data.format(place=tmp_path), "--run", tmp_path / "run", "--max_steps", 1, *TINY)
    code, out, err = xhat(*command, *more, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert not (tmp_path / "run").exists()


def test_images_go_into_an_npz(tiny_run, tmp_path, capsys):
    code, _, err = xhat("sample", tiny_run, "--n", 2, "--out", tmp_path / "s.npy", capsys=capsys)
    assert code == 2
    assert "images go into an .npz" in err
