"""The demo for real: what a newcomer gets after a few minutes."""

import json

import numpy as np
import pytest

from helpers import process, xhat


@pytest.mark.slow
def test_the_demo_draws_readable_digits(tmp_path, capsys):
    """In a process of its own, on two cores: 75 % or more of 1,000 samples are read with confidence, all ten digits appear."""
    run = tmp_path / "demo"
    job = process("train", "mnist", "--run", run, OMP_NUM_THREADS="2")
    assert job.wait() == 0, job.stderr.read()
    assert xhat("sample", run, "--n", 1000, "--seed", 1, "--out", tmp_path / "s.npz", capsys=capsys)[0] == 0
    assert np.load(tmp_path / "s.npz")["images"].shape == (1000, 28, 28, 1)
    _, out, _ = xhat("evaluate", run, "--samples", tmp_path / "s.npz", "--json", capsys=capsys)
    result = json.loads(out)
    print({k: result[k] for k in ("step", "fid", "confident", "confident_real", "digits")})
    assert result["confident"] >= 0.75
    assert min(result["digits"]) > 0
    assert result["confident_real"] > 0.97
