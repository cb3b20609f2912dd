"""xhat evaluate --bound and --ode as a user calls them."""

import json
import shutil

import pytest
import torch

from helpers import xhat
from xhat.bound.estimate import Progress
from xhat.commands import likelihood

KEYS = {
    "bits_per_dim",
    "bits_per_dim_se",
    "prior",
    "diffusion",
    "reconstruction",
    "network_evaluations_per_image",
    "images",
    "steps",
}


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def measure(run, digits, capsys):
    """The JSON object of --bound with these options."""

    def call(*options):
        code, out, err = xhat("evaluate", run, "--bound", "--data", digits, "--json", *options, capsys=capsys)
        assert code == 0, err
        return json.loads(out)

    return call


def test_bound_prints_one_json_object_and_draws_its_steps(run, measure):
    result = measure("--n", 12)
    assert set(result) >= KEYS
    assert (result["images"], result["steps"], result["network_evaluations_per_image"]) == (12, 1000, 8)
    parts = result["prior"] + result["diffusion"] + result["reconstruction"]
    assert result["bits_per_dim"] == pytest.approx(parts)
    assert (run / "bound.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(run.glob("*.progress.*"))


def test_exact_and_estimate_agree_and_the_seed_repeats(measure):
    exact = measure("--n", 8, "--exact", "--steps", 40)
    own, again = (measure("--n", 8, "--steps", 40) for _ in range(2))
    assert own == again
    assert (exact["network_evaluations_per_image"], exact["steps"]) == (40, 40)
    assert own["bits_per_dim"] == pytest.approx(exact["bits_per_dim"], rel=0.3)


def test_continuous_time_has_no_steps(measure):
    assert measure("--n", 8, "--steps", "inf")["steps"] is None


def test_an_interrupted_bound_goes_on(run, digits, measure, monkeypatch):
    whole = measure("--n", 40)
    written = []
    keep = likelihood._write_progress
    monkeypatch.setattr(likelihood, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(likelihood, "_write_progress", lambda *a: (keep(*a), written.append(a)))
    original = likelihood.estimate_bound

    def stopped(*args, **kwargs):
        report = kwargs["report"]

        def stop(progress, se):
            report(progress, se)
            raise KeyboardInterrupt

        return original(*args, **{**kwargs, "report": stop, "rows": 80})

    monkeypatch.setattr(likelihood, "estimate_bound", stopped)
    assert xhat("evaluate", run, "--bound", "--data", digits, "--n", 40)[0] == 130
    assert written
    assert (run / "bound.progress.safetensors").exists()
    seen = []

    def watched(*args, **kwargs):
        seen.append(len(kwargs["progress"].terms))
        return original(*args, **kwargs)

    monkeypatch.setattr(likelihood, "estimate_bound", watched)
    result = measure("--n", 40)
    assert seen[0] == 10
    assert result["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-5)
    assert not (run / "bound.progress.safetensors").exists()


def test_progress_of_other_settings_or_a_damaged_file_is_not_used(tmp_path):
    path = tmp_path / "bound.progress.safetensors"
    likelihood._write_progress(path, Progress(None, torch.ones(3, 3).double(), torch.ones(2).double()), [1])
    assert len(likelihood._read_progress(path, [1]).terms) == 3
    assert len(likelihood._read_progress(path, [2]).terms) == 0
    path.write_bytes(b"broken")
    assert len(likelihood._read_progress(path, [1]).terms) == 0


def test_ode_states_how_it_was_measured(run, digits, capsys):
    code, out, err = xhat("evaluate", run, "--ode", "--data", digits, "--n", 4, "--json", capsys=capsys)
    assert code == 0, err
    result = json.loads(out)
    assert result["images"] == 4
    assert "truncated normal" in result["dequantization"]
    assert "Hutchinson" in result["trace"]


def test_what_people_read(run, digits, capsys):
    code, out, _ = xhat("evaluate", run, "--bound", "--data", digits, "--n", 8, capsys=capsys)
    assert code == 0
    assert "bits/dim" in out
    assert "reconstruction" in out
    assert xhat("evaluate", run, "--ode", "--data", digits, "--n", 2)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bound", "--steps", "0"], "diffusion: the bound needs a whole number of steps, at least 1"),
        (["--bound", "--steps", "many"], 'got "many"'),
        (["--bound", "--exact", "--precision", "-1"], "--precision"),
        (["--bound", "--ode"], "name one"),
        (["--exact"], "belong to --bound"),
        (["--bound", "--n", "1"], "at least 2"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, digits, options, message, capsys):
    before = sorted(p.name for p in run.iterdir())
    code, out, err = xhat("evaluate", run, "--data", digits, *options, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(p.name for p in run.iterdir()) == before
