"""Benchmarks are not run here; how they are called is."""

import importlib
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from helpers import process
from xhat.data.load import load

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("random_noise.py", "RUN", "--out", "no-such-folder"), "the folder no-such-folder does not exist"),
        (("random_noise.py", "no-such-run"), "no-such-run does not exist: train first"),
        (("openai_bound.py", str(BENCHMARKS)), "has no nn.py: name guided_diffusion"),
        (("muon.py", "some"), "some is no whole number of at least 1"),
        (("peers.py", "--rounds", "0"), "0 is no whole number of at least 1"),
        (("peers.py",), "is not installed: make bench installs it"),
    ],
)
def test_a_wrong_call_is_one_line(call, said):
    script, *words = call
    job = process(*words, launcher=(str(BENCHMARKS / script),))
    out, err = job.communicate(timeout=120)
    assert (job.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{script}: ")
    assert said in err


@pytest.mark.slow
def test_judges_are_trained_where_none_are_kept(tmp_path, monkeypatch):
    """And kept: a second time they say the same."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    quality = importlib.import_module("time_to_quality")
    monkeypatch.setattr(importlib.import_module("judges"), "EPOCHS", Fraction(1, 50))
    digits = load("mnist", 28, "test")
    images, labels = torch.as_tensor(digits.pixels[:200]), digits.labels[:200]
    first = quality.judged(images, labels, tmp_path, 7)
    assert {path.stem for path in tmp_path.iterdir()} == set(quality.JUDGES)
    assert quality.judged(images, labels, tmp_path, 7) == first
