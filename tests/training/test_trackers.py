"""Trackers see the numbers of metrics.jsonl under its own names, and the pictures; a resumed run goes on in the same one."""

import json

import pytest
import torch

import xhat
from helpers import TINY, write_digits
from helpers import xhat as command
from xhat.errors import RunError
from xhat.training.trackers import flat_numbers

QUICK = {"batch_size": 8, "compile": "off", "log_every": 1, "checkpoint_every": 2, "sample_every": 2, "sampling": {"steps": 2}}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z, t):
        return self.body(z)


def objective():
    torch.manual_seed(0)
    denoiser = xhat.Denoiser(Net(), xhat.Cosine(), xhat.V)
    return xhat.Objective(denoiser, {"denoise": xhat.Term(xhat.Denoising(xhat.V))})


def data():
    return (torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 255).byte()


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_numbers_have_the_names_of_the_metrics():
    row = {"step": 3, "loss": 1.0, "terms": {"a": 2.0}, "levels": {"a": {"-8": 0.5}}, "eval/bits_per_dim": 3.0, "text": "no"}
    assert flat_numbers(row) == {"loss": 1.0, "terms/a": 2.0, "levels/a/-8": 0.5, "eval/bits_per_dim": 3.0}


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    xhat.fit(objective(), data(), run, track="tensorboard", max_steps=3, **QUICK)
    xhat.fit(objective(), data(), run, track="tensorboard", max_steps=5, resume=True, **QUICK)
    found = accumulator.EventAccumulator(str(run / "tracked"), size_guidance={"scalars": 0, "images": 0}).Reload()
    for row in rows(run):
        for name, value in flat_numbers(row).items():
            (event,) = [e for e in found.Scalars(name) if e.step == row["step"]]
            assert event.value == pytest.approx(value, rel=1e-6)
    assert [event.step for event in found.Images("samples")] == [2, 3, 4, 5]


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, run = [], tmp_path / "run"
    real = wandb.Run.log

    def log(self, values, step=None, **kwargs):
        logged.append((self.id, step, dict(values)))
        return real(self, values, step=step, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", log)
    xhat.fit(objective(), data(), run, track="wandb", max_steps=3, **QUICK)
    xhat.fit(objective(), data(), run, track="wandb", max_steps=5, resume=True, **QUICK)
    assert len({number for number, *_ in logged}) == 1, "one run of the tracker's, before and after"
    numbers = [(step, values) for _, step, values in logged if "samples" not in values]
    assert numbers == [(row["step"], flat_numbers(row)) for row in rows(run)]
    assert [step for _, step, values in logged if "samples" in values] == [2, 3, 4, 5]
    assert list((run / "tracked" / "wandb").glob("offline-run-*/*.wandb"))


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not among the versions that go with the others: tried by hand")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    xhat.fit(objective(), data(), run, track="mlflow", max_steps=3, **QUICK)
    xhat.fit(objective(), data(), run, track="mlflow", max_steps=5, resume=True, **QUICK)
    number = (run / "tracked" / "mlflow.id").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing beside the run"
    assert not mlflow.is_tracking_uri_set()
    client = mlflow.MlflowClient((run / "tracked" / "mlruns").as_uri())
    history = client.get_metric_history(number, "terms/denoise")
    assert [(m.step, m.value) for m in history] == [(row["step"], row["terms"]["denoise"]) for row in rows(run)]
    assert len(client.list_artifacts(number, "samples")) == 4


def test_a_tracker_that_is_missing_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="track wandb: it is not installed: pip install wandb"):
        xhat.fit(objective(), data(), tmp_path / "run", track="wandb", max_steps=2, **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_costs_a_warning(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def fails(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(TensorBoardTracker, "log", fails)
    with pytest.warns(UserWarning, match="track tensorboard: no space left; training goes on without"):
        done = xhat.fit(objective(), data(), tmp_path / "run", track="tensorboard", max_steps=3, **QUICK)
    assert done.finished


def test_the_option_of_the_command(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    digits = write_digits(tmp_path / "digits.npz")
    options = ("--data", digits, "--max_steps", 2, "--track", "tensorboard", *TINY)
    assert command("train", "mnist", "--run", tmp_path / "run", *options)[0] == 0
    assert list((tmp_path / "run" / "tracked").glob("events.*"))
    wrong = ("--max_steps", 2, "--track", "excel", *TINY)
    code, _, err = command("train", "mnist", "--run", tmp_path / "no", *wrong, capsys=capsys)
    assert code == 2
    assert "track" in err
    assert not (tmp_path / "no").exists()
