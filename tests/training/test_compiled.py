"""A compiled network, whole and split, under losses that call it again, without gradient, recomputed, differentiated twice."""

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
    assert out.splitlines()[:3] == ["unet 1 0", "volumes 1 0", "dit 1 0"]
    # of an objective that somebody compiles: what counts and draws, and then one graph, the same for all steps
    assert out.splitlines()[3:] == ["settled True same True", "objective [False, True] 1"]


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one(tmp_path, digits):
    rows, options = {}, ("--max_steps", 4, "--precision", "float32", "--optimizer.muon_lr", 0)
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "xhat", "--")
    for choice in ("off", "on", "on, split"):
        run, on = tmp_path / choice, choice.partition(",")[0]
        split = {"launcher": several} if "split" in choice else {}
        shard = ("--shard", "true") if split else ()
        words = ("--data", digits, "--run", run, *TINY, *options, *CHAIN, "--compile", on, *shard)
        job = process("train", "mnist", *words, **split)
        assert job.wait(timeout=600) == 0, job.stderr.read()
        assert "not compiled" not in job.stderr.read()
        found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows[choice] = [{**row["terms"], "grad_norm": row["grad_norm"]} for row in found]
    for plain, *compiled in zip(*rows.values(), strict=True):
        assert all(each == pytest.approx(plain, rel=1e-3) for each in compiled)
