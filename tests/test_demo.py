"""The demo for real, counted in steps instead of minutes: what it shows must not depend on how busy the machine is."""

import json

import numpy as np
import pytest

from helpers import process, xhat
from xhat.data.images import to_float
from xhat.data.parts import load_parts
from xhat.evaluation.denoising import LEVELS, x0_errors
from xhat.evaluation.floor import floor_errors
from xhat.runs.load import load

STEPS = 600


@pytest.mark.slow
def test_the_demo_draws_readable_digits(tmp_path, capsys):
    """The steps of a minute on two slow cores: 80 % or more of 1,000 samples are read with confidence, all ten digits appear.
    In a process of its own."""
    run = tmp_path / "demo"
    job = process("train", "mnist", "--run", run, "--max_steps", STEPS)
    assert job.wait() == 0, job.stderr.read()
    assert xhat("sample", run, "--n", 1000, "--seed", 1, "--out", tmp_path / "s.npz", capsys=capsys)[0] == 0
    assert np.load(tmp_path / "s.npz")["images"].shape == (1000, 28, 28, 1)
    _, out, _ = xhat("evaluate", run, "--samples", tmp_path / "s.npz", "--json", capsys=capsys)
    result = json.loads(out)
    print({k: result[k] for k in ("step", "fid", "confident", "confident_real", "digits")})
    assert result["confident"] >= 0.8
    assert min(result["digits"]) > 0
    assert result["confident_real"] > 0.97
    the_floor_lies_under(run)


def the_floor_lies_under(run):
    """At every level the network's error is above the floor, or within three paired standard errors of it; far above somewhere.

    On the same held-out images and noises, both told the label.
    """
    trained, (training, held_out) = load(run), load_parts("mnist")
    x0, labels = to_float(held_out.pixels[:200]), held_out.labels[:200]
    floor = floor_errors(to_float(training.pixels), x0, training.labels, labels)
    above = x0_errors(trained.denoiser, x0, {"label": labels}) - floor.lower
    assert (above.mean(1) > -3 * above.std(1) / len(x0) ** 0.5).all()
    assert (above.mean(1) > 5 * above.std(1) / len(x0) ** 0.5).sum() > len(LEVELS) / 2
