"""A compiled network under losses that call it again, without gradient, recomputed, and differentiated twice."""

import json
from pathlib import Path

import pytest

from helpers import TINY, process

CHAIN = (
    *("--terms.chain.loss", "image_loss(total_variation, full_chain(ddim, 3, last(2)))"),
    *("--terms.chain.weight", "gradient_ratio(0.1, 2)"),
)


@pytest.mark.slow
def test_all_that_follows_the_draw_compiles_to_one_graph():
    """The network, the map to x0, the weighting, the mean; times and noise come of generators, which no graph has."""
    job = process(launcher=("-W", "ignore", str(Path(__file__).with_name("compiled_worker.py"))))
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert out.splitlines() == ["unet 1 0", "volumes 1 0", "dit 1 0"]


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one(tmp_path, digits):
    rows = {}
    for choice in ("off", "on"):
        run = tmp_path / choice
        options = ("--max_steps", 4, "--precision", "float32", "--optimizer.muon_lr", 0)
        job = process("train", "mnist", "--data", digits, "--run", run, *TINY, *options, *CHAIN, "--compile", choice)
        assert job.wait(timeout=600) == 0, job.stderr.read()
        assert "not compiled" not in job.stderr.read()
        rows[choice] = [json.loads(line)["terms"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    for plain, compiled in zip(*rows.values(), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3)
