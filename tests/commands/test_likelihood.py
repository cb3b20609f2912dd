"""xhat evaluate --bound and --ode as a user calls them."""

import errno
import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch

from helpers import TINY, process, write_digits, xhat
from xhat.bound.control import Control
from xhat.bound.density import Pilot
from xhat.bound.estimate import Curve, Progress
from xhat.commands.actions import likelihood
from xhat.commands.terminal import print_json
from xhat.evaluation import likelihood as module
from xhat.evaluation.pictures import save_bound
from xhat.runs.progress_file import ProgressFile

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
    exact = measure("--n", 8, "--exact", "--bound_steps", 40)
    own, again = (measure("--n", 8, "--bound_steps", 40) for _ in range(2))
    assert own == again
    assert (exact["network_evaluations_per_image"], exact["steps"]) == (40, 40)
    assert own["bits_per_dim"] == pytest.approx(exact["bits_per_dim"], rel=0.3)


def test_continuous_time_has_no_steps(measure):
    assert measure("--n", 8, "--bound_steps", "inf")["steps"] is None


def test_an_interrupted_bound_goes_on(run, digits, measure, monkeypatch):
    whole = measure("--n", 40)
    written = []
    keep = ProgressFile.write
    monkeypatch.setattr(likelihood, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(ProgressFile, "write", lambda *a: (keep(*a), written.append(a)))
    original = module.estimate_bound

    def stopped(*args, **kwargs):
        report = kwargs["report"]

        def stop(progress, se):
            report(progress, se)
            raise KeyboardInterrupt

        return original(*args, **{**kwargs, "report": stop, "rows": 80})

    monkeypatch.setattr(module, "estimate_bound", stopped)
    assert xhat("evaluate", run, "--bound", "--data", digits, "--n", 40)[0] == 130
    assert written
    assert (run / "bound.progress.safetensors").exists()
    seen = []

    def watched(*args, **kwargs):
        seen.append(len(kwargs["progress"].terms))
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "estimate_bound", watched)
    result = measure("--n", 40)
    assert seen[0] == 10
    assert result["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-5)
    assert not (run / "bound.progress.safetensors").exists()


@pytest.mark.filterwarnings("default:.*is damaged")
def test_damaged_progress_in_a_run_is_measured_anew(measure, monkeypatch):
    """All that matches are the settings."""
    pilot = Pilot(torch.full((30,), 1 / 30, dtype=torch.float64), Control.none(30), 7)
    kept = []
    with monkeypatch.context() as own:
        own.setattr(ProgressFile, "remove", lambda self: kept.append(self))
        want = measure("--n", 8)
    kept[0].write(Progress(pilot, torch.full((4, 3), torch.nan).double(), torch.ones(2).double()))
    assert measure("--n", 8) == want


@pytest.mark.filterwarnings("default:cannot write")
def test_a_folder_that_cannot_be_written_costs_a_note_not_the_numbers(run, digits, monkeypatch, capsys):
    monkeypatch.setattr(likelihood, "SAVE_SECONDS", -1.0)
    (run / "bound.png").mkdir()

    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("xhat.runs.progress_file.write_tensors", full)
    code, out, err = xhat("evaluate", run, "--bound", "--data", digits, "--n", 40, "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["picture"] is None
    notes = err.splitlines()
    assert len(notes) == 2
    assert all(line.startswith("xhat: note: cannot write ") for line in notes)
    assert xhat("evaluate", run, "--bound", "--data", digits, "--n", 8, capsys=capsys)[0] == 0


def test_ode_states_how_it_was_measured(run, digits, capsys):
    code, out, err = xhat("evaluate", run, "--ode", "--data", digits, "--n", 4, "--json", capsys=capsys)
    assert code == 0, err
    result = json.loads(out)
    assert result["images"] == 4
    names = {result["dequantization"], (other := result["other_dequantization"])["name"]}
    assert names == {"uniform", "variational, truncated normal"}
    assert result["bits_per_dim"] <= other["bits_per_dim"]
    low, high = result["bits_per_dim_95"]
    assert low < result["bits_per_dim"] < high
    assert "Hutchinson" in result["trace"]


def test_what_people_read(run, digits, capsys):
    code, out, _ = xhat("evaluate", run, "--bound", "--data", digits, "--n", 8, capsys=capsys)
    assert code == 0
    assert "bits/dim" in out
    assert "reconstruction" in out
    assert xhat("evaluate", run, "--ode", "--data", digits, "--n", 2)[0] == 0


def test_every_line_fits_a_terminal(run, digits, capsys):
    for options in (("--bound",), ("--bound", "--bound_steps", "inf"), ("--ode", "--n", 2)):
        _, out, err = xhat("evaluate", run, "--data", digits, *options, capsys=capsys)
        assert err == ""
        lines = [line for line in out.splitlines() if not line.startswith("picture: ")]
        assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_nothing_but_the_error_is_on_stderr(run, digits):
    """In a process: where stderr is no terminal, the progress bar left an empty line."""
    for options, errors in ((("--n", "8"), 0), (("--n", "8", "--bound_steps", "1e30"), 1)):
        _, err = process("evaluate", run, "--bound", "--data", digits, *options).communicate()
        assert len(err.splitlines()) == errors, err


@pytest.mark.slow
def test_precision_takes_all_images_and_says_what_it_reached(run, digits, capsys):
    def measured(*options):
        _, out, err = xhat("evaluate", run, "--bound", "--data", digits, "--json", *options, capsys=capsys)
        return json.loads(out), err

    result, err = measured("--standard_error", 1e-9)
    assert (result["images"], result["standard_error_reached"]) == (52, False)  # 64, a fifth of them for the pilot
    assert err == "xhat: note: standard error 1e-09 not reached with 52 images: there are no more, name others with --data\n"
    result, err = measured("--standard_error", 1e-9, "--n", 10)
    assert err == "xhat: note: standard error 1e-09 not reached with 10 images: raise --n\n"
    result, err = measured("--standard_error", 1e9)
    assert (result["standard_error_reached"], err) == (True, "")
    assert measured("--n", 10)[0]["standard_error_reached"] is None


def test_precision_is_not_capped_at_a_thousand_images(run, tmp_path, capsys):
    many = write_digits(tmp_path / "many.npz", 1300)
    _, out, _ = xhat("evaluate", run, "--bound", "--data", many, "--standard_error", 1e-9, "--json", capsys=capsys)
    assert json.loads(out)["images"] == 1040


@pytest.fixture
def relabelled(tmp_path):
    """The run has four classes; here are its images with other labels, or none."""

    def make(labels=None):
        given = {} if labels is None else {"labels": labels}
        path = tmp_path / "other.npz"
        np.savez(path, images=np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8), **given)
        return path

    return make


@pytest.mark.parametrize("kind", ["--bound", "--ode"])
def test_images_without_labels_are_not_called_conditional(run, relabelled, kind, capsys):
    code, out, _ = xhat("evaluate", run, kind, "--data", relabelled(), "--n", 4, "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["conditional"] is False
    _, out, _ = xhat("evaluate", run, kind, "--data", relabelled(), "--n", 4, capsys=capsys)
    assert "given" not in out
    _, out, _ = xhat("evaluate", run, kind, "--data", relabelled(np.arange(20) % 4), "--n", 4, capsys=capsys)
    assert "given their labels" in out


@pytest.mark.parametrize("kind", [["--bound"], ["--ode"], []], ids=str)
def test_labels_that_the_run_does_not_know(run, relabelled, kind, capsys):
    code, out, err = xhat("evaluate", run, *kind, "--data", relabelled(np.arange(20)), "--n", 4, capsys=capsys)
    assert (code, out) == (2, "")
    assert "has classes that the run does not know: 4, 5, 6, ..." in err
    assert len(err.splitlines()) == 1


def test_a_schedule_that_ends_in_pure_noise_makes_valid_json_and_a_picture(tmp_path, digits, capsys):
    run = tmp_path / "zero"
    options = ("--schedule", "zero_terminal(linear_beta(50))", "--target", "v", "--max_steps", 2)
    assert xhat("train", "mnist", "--run", run, "--data", digits, *TINY, *options)[0] == 0
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, out, err = xhat("evaluate", run, "--bound", "--data", digits, "--n", 8, "--json", capsys=capsys)
    assert (code, err) == (0, "")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert all(np.isfinite(values).all() for values in result["curve"].values())
    assert xhat("evaluate", run, "--ode", "--data", digits, "--n", 2, capsys=capsys)[0] == 0


@pytest.mark.parametrize("bits", [[0.0, 0.0], [-1e-3, -1e-4], [1e61, 1.0]], ids=str)
def test_any_bits_can_be_drawn(tmp_path, bits):
    """A model that is told its images pays nothing, and an estimate of nothing may be below 0: no logarithm then."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_bound(tmp_path / "bound.png", Curve([1, 2], [1, 3], [1.0, 0.0], [1.0, 1.0], bits), "bound")


def test_json_has_no_infinite_numbers(capsys):
    print_json({"a": float("nan"), "b": [1.0, {"c": float("-inf")}], "d": 2})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.0, {"c": None}], "d": 2}


def test_seed_help_names_what_it_seeds(capsys):
    with pytest.raises(SystemExit):
        xhat("evaluate", "--help")
    assert "of images and draws" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bound", "--bound_steps", "0"], "diffusion: the bound needs a whole number of steps, at least 1"),
        (["--bound", "--bound_steps", "many"], 'got "many"'),
        (["--bound", "--standard_error", "-1"], "--standard_error"),
        (["--bound", "--ode"], "name one"),
        (["--exact"], "--exact belongs to --bound: add that"),
        (["--ode", "--exact"], "--exact belongs to --bound: leave it out with --ode"),
        (["--ode", "--standard_error", "0.1"], "--standard_error belongs to --bound"),
        (["--ode", "--bound_steps", "20"], "--bound_steps belongs to --bound"),
        (["--bound", "--samples", "x.npz"], "--samples is for the measurement of samples, not for --bound: leave it out"),
        (["--ode", "--features", "a:b"], "--features is for the measurement of samples, not for --ode: leave it out"),
        (["--bound", "--images", "50"], "--images is for the measurement of samples"),
        (["--bound", "--exact", "--standard_error", "0.1"], "name one"),
        (["--bound", "--standard_error", "0"], "--standard_error must be in bits/dim"),
        (["--bound", "--bound_steps", "1e10"], "at most 1,000,000 steps, got 1e+10: use inf for continuous time"),
        (["--bound", "--bound_steps", "1e30"], "use inf for continuous time"),
        (["--images", "1"], "at least 2"),
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
