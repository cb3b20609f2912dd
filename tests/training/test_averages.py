"""Averages of any width, made of those that a run has kept: against the average itself, and the profiles on a grid."""

import re
import shutil

import numpy as np
import pytest
import torch

from helpers import TINY, states_equal, xhat
from xhat import load
from xhat.runs.averages import coefficients, kept_averages, power_exponent
from xhat.runs.places import AVERAGES, checkpoints
from xhat.runs.weights import read_weights
from xhat.training.ema import PowerAverage

KEPT = [(100 * i, width) for i in range(1, 11) for width in (0.05, 0.1)]


def profile(step, width, steps=1000):
    """The weight of each step in an average after `step` of them: the recurrence's own, in closed form."""
    k, gamma = np.arange(1, steps + 1), power_exponent(width)
    inside = np.minimum(k, step) ** (gamma + 1) - np.minimum(k - 1, step) ** (gamma + 1)
    return inside / float(step) ** (gamma + 1)


def test_the_profile_is_that_of_the_recurrence():
    """Each step's weight by itself, 1 in a step and 0 in all others."""
    model, found = torch.nn.Linear(1, 1, bias=False).double(), []
    for step in range(1, 9):
        average = PowerAverage(model, 0.1)
        for t in range(1, 9):
            torch.nn.init.constant_(model.weight, float(t == step))
            average.update_parameters(model)
        found.append(average.module.weight.item())
    np.testing.assert_allclose(found, profile(8, 0.1, 8), atol=1e-12)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.25])
@pytest.mark.parametrize("step", [700, 1000])
def test_no_other_sum_of_coefficients_comes_nearer(width, step):
    """Least squares on a fine grid, by another solver, with the sum held by elimination; and how near, on the grid."""
    kept = [(at, w) for at, w in KEPT if at <= step]
    fine = 20
    a = np.stack([profile(at * fine, w, step * fine) for at, w in kept], 1)
    b = profile(step * fine, width, step * fine)
    free = np.linalg.lstsq(a[:, :-1] - a[:, -1:], b - a[:, -1], rcond=None)[0]
    best = np.append(free, 1 - free.sum())
    found, miss = coefficients(kept, width, step)
    errors = [np.linalg.norm(a @ x - b) / np.linalg.norm(b) for x in (best, found)]
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert errors[1] == pytest.approx(errors[0], rel=1e-3, abs=1e-6)
    assert miss == pytest.approx(errors[1], rel=1e-3, abs=1e-5)


def test_kept_thirty_times_common_widths_are_near():
    kept = [(step, width) for step in range(100, 3001, 100) for width in (0.05, 0.1)]
    assert max(coefficients(kept, width, 3000)[1] for width in (0.04, 0.07, 0.12, 0.15, 0.2)) < 0.01


@pytest.mark.parametrize("kept", [(1000, 0.05), (1000, 0.1)])
def test_an_average_that_was_kept_is_itself(kept):
    found, miss = coefficients(KEPT, kept[1], kept[0])
    np.testing.assert_allclose(found, [float(one == kept) for one in KEPT], atol=1e-8)
    assert miss < 1e-6


def test_weights_on_a_walk_are_averaged_as_if_that_average_had_been_kept():
    """A random walk: what is made of those kept is 100 times nearer than the nearest of them."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(50, 1, bias=False).double()
    averages = {width: PowerAverage(model, width) for width in (0.05, 0.1, 0.15)}
    kept = []
    for step in range(1, 1601):
        with torch.no_grad():
            model.weight += torch.randn(1, 50, generator=generator, dtype=torch.float64)
        for average in averages.values():
            average.update_parameters(model)
        if step % 50 == 0:
            kept += [(step, width, averages[width].module.weight.detach().clone()) for width in (0.05, 0.1)]
    shares, _ = coefficients([(step, width) for step, width, _ in kept], 0.15, 1600)
    made = sum(share * x for share, (*_, x) in zip(shares, kept, strict=True))
    wanted = averages[0.15].module.weight
    assert (made - wanted).norm() < 0.01 * (kept[-1][2] - wanted).norm()


OPTIONS = ("--max_steps", 12, *TINY, "--ema", 0.1, "--averages_every", 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    run = tmp_path_factory.mktemp("averages") / "run"
    assert xhat("train", "mnist", "--data", digits, "--run", run, *OPTIONS)[0] == 0
    return run


def test_a_run_keeps_two_averages_each_so_many_steps_and_at_its_end(run):
    assert [(one.step, one.width) for one in kept_averages(run)] == [(s, w) for s in (3, 6, 9, 12) for w in (0.05, 0.1)]
    last = kept_averages(run)[-1]
    assert states_equal(read_weights(last.path).tensors, read_weights(run).tensors), "ema.safetensors has the width 0.1, too"
    assert read_weights(last.path).step == 12


def test_the_average_of_a_width_is_a_file_to_sample_from(run, tmp_path, digits, capsys):
    """Near to what another training of the same steps averages itself: 12 steps are not quite continuous."""
    out = tmp_path / "wide.safetensors"
    code, printed, err = xhat("average", run, "--width", 0.08, "--out", out, capsys=capsys)
    assert (code, err) == (0, ""), err
    assert "of width 0.08 after 12 steps" in printed
    assert xhat("sample", out, "--n", 2, "--out", tmp_path / "x.npz")[0] == 0
    assert xhat("train", "mnist", "--data", digits, "--run", tmp_path / "own", *OPTIONS, "--ema", 0.08)[0] == 0
    made, own, other = (load(x).denoiser.state_dict() for x in (out, tmp_path / "own", run))
    far = max(float((other[name] - x).abs().max()) for name, x in own.items())
    assert 0 < max(float((made[name] - x).abs().max()) for name, x in own.items()) < far / 5
    assert xhat("average", run, "--width", 0.08, "--step", 6, "--out", tmp_path / "half.safetensors")[0] == 0
    assert read_weights(tmp_path / "half.safetensors").step == 6


def test_a_resumed_run_keeps_the_same(run, tmp_path, digits):
    """Stopped after step 8, where averages of step 9 lay about of a training before."""
    again = tmp_path / "again"
    assert xhat("train", "mnist", "--data", digits, "--run", again, *OPTIONS)[0] == 0
    for path in checkpoints(again)[:1]:
        path.unlink()
    first = [one for one in kept_averages(again) if one.step > 8]
    for one in first:
        one.path.write_bytes(b"of a step that is done again")
    assert xhat("train", "--run", again, "--resume")[0] == 0
    assert [one.path.name for one in kept_averages(again)] == [one.path.name for one in kept_averages(run)]
    for ours, theirs in zip(kept_averages(again), kept_averages(run), strict=True):
        assert states_equal(read_weights(ours.path).tensors, read_weights(theirs.path).tensors)


def test_averages_of_steps_that_are_never_done_again_go(run, tmp_path):
    """A training that goes on from step 8, and ends before the step that it had come to."""
    shorter = shutil.copytree(run, tmp_path / "shorter")
    checkpoints(shorter)[0].unlink()
    assert xhat("train", "--run", shorter, "--resume", "--max_steps", 10)[0] == 0
    assert sorted({one.step for one in kept_averages(shorter)}) == [3, 6, 9, 10]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--width", 0.3), "at most 0.28"),
        (("--width", 0.1, "--step", 7), "the nearest is --step 6"),
        (("--width", 0.1, "--out", "x.npz"), r"must end in \.safetensors"),
    ],
)
def test_what_cannot_be_made_is_one_line(run, tmp_path, monkeypatch, capsys, options, line):
    monkeypatch.chdir(tmp_path)
    code, _, err = xhat("average", run, *(() if "--out" in options else ("--out", "x.safetensors")), *options, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(line, err), err
    assert not list(tmp_path.iterdir())


def test_half_of_what_a_kill_left_is_nobodys(run, tmp_path):
    """Of the last step one of two averages: the step before is the last."""
    half = shutil.copytree(run, tmp_path / "half")
    kept_averages(half)[-1].path.unlink()
    assert xhat("average", half, "--width", 0.08, "--out", tmp_path / "x.safetensors")[0] == 0
    assert read_weights(tmp_path / "x.safetensors").step == 9


def test_a_run_without_averages_says_how_to_keep_them(tmp_path, digits, capsys):
    assert xhat("train", "mnist", "--data", digits, "--run", tmp_path / "run", "--max_steps", 1, *TINY)[0] == 0
    assert not (tmp_path / "run" / AVERAGES).exists()
    code, _, err = xhat("average", tmp_path / "run", "--width", 0.1, "--out", tmp_path / "x.safetensors", capsys=capsys)
    assert code == 2
    assert "train with --averages_every" in err


def test_too_few_averages_are_noted(run, tmp_path, capsys):
    code, _, err = xhat("average", run, "--width", 0.28, "--out", tmp_path / "x.safetensors", capsys=capsys)
    assert code == 0
    assert "keep averages more often" in err
