"""Penalties that a run is watched by, and not trained on."""

import json

import numpy as np

from helpers import TINY, xhat
from xhat import fit
from xhat.config.config import from_values, to_values
from xhat.config.parsing import options_of


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_they_are_in_the_metrics_from_the_first_line_on(tmp_path, digits, capsys):
    run = tmp_path / "run"
    words = ("--data", digits, "--max_steps", 6, "--log_every", 1, "--sample_every", 4, "--watch.rough", "total_variation")
    assert xhat("train", "mnist", "--run", run, *TINY, *words)[0] == 0
    seen = {row["step"]: row["watch/rough"] for row in rows(run) if "watch/rough" in row}
    assert list(seen) == [1, 4, 6]
    assert all(value > 0 for value in seen.values())
    capsys.readouterr()
    assert xhat("evaluate", run, "--n", 8, capsys=capsys)[0] == 0


def test_evaluate_says_that_they_are_not_trained_on(tmp_path, digits, capsys):
    run = tmp_path / "run"
    words = ("--data", digits, "--max_steps", 1, "--watch.rough", "laplacian")
    assert xhat("train", "mnist", "--run", run, *words, *TINY)[0] == 0
    capsys.readouterr()
    _, out, _ = xhat("evaluate", run, "--n", 8, capsys=capsys)
    line = next(line for line in out.splitlines() if line.startswith("rough"))
    assert line.rstrip().endswith("not trained on")


def test_one_that_cannot_be_measured_is_refused_before_anything_is_written(tmp_path, digits, capsys):
    for text, said in (
        ("total_variatio", "did you mean total_variation"),
        ("unreadable_digit", "reads grey images"),
        ("ddim", "no function"),
    ):
        run = tmp_path / "run"
        words = ("--data", digits, "--max_steps", 1, "--watch.rough", text)
        code, _, err = xhat("train", "mnist", "--run", run, *words, *TINY, capsys=capsys)
        assert (code, err.splitlines()[-1].startswith("xhat train: watch.rough: ")) == (2, True), err
        assert said in err
        assert not run.exists()


def test_runs_of_earlier_versions_watch_nothing():
    from xhat.config.config import Config

    values = to_values(Config(max_steps=1))
    del values["watch"]
    assert from_values(values).watch == {}
    assert options_of({"max_steps": 1, "watch": {"a": "laplacian"}}).watch == {"a": "laplacian"}


def test_fit_takes_them_too(tmp_path):
    import torch

    from xhat import Cosine, Denoiser, Denoising, Objective, Term, UNet, V

    data = torch.as_tensor(np.random.default_rng(0).uniform(-1, 1, (32, 1, 8, 8)).astype(np.float32))
    objective = Objective(Denoiser(UNet(channels=1, widths=(8,), blocks=(1,)), Cosine(), V), {"d": Term(Denoising())})
    fitted = fit(objective, data, tmp_path / "run", max_steps=2, batch_size=8, log_every=1, watch={"rough": "total_variation"})
    assert fitted.numbers["watch/rough"] > 0
