"""Two gloo processes train an adapter as one does: a reward along a chain, near the model without the adapter."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_commands_of_pipelines import SMALL, write_pictures

from helpers import process

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "xhat", "--")
TERMS = (
    *("--terms.reward.loss", "image_loss(total_variation, full_chain(ddim, 2, last(1)), decode=decode(chunk=1))"),
    *("--terms.near.loss", "to_reference()"),
    *("--terms.away.loss", "to_reference(along=full_chain(ddim, 2))"),
)
COMPARED = (
    "--terms.reward.weight",
    "gradient_ratio(0.1, 2)",
)  # gradients, which no process has of all weights at once by blocks


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true", "blocks"])
def test_two_ranks_train_one_adapter(shard, tmp_path, monkeypatch):
    """Each with all of the weights, or with a half of them, gathered at once or block by block."""
    monkeypatch.setenv("XHAT_CACHE", str(tmp_path / "cache"))
    tiny.stable_diffusion().save_pretrained(tmp_path / "sd")
    write_pictures(tmp_path / "pics", 12)
    own = ("train", "--init", tmp_path / "sd", "--lora", 2, "--data", tmp_path / "pics", "--max_steps", 4, *SMALL, *TERMS)
    own += () if shard == "blocks" else COMPARED
    for name, launcher in (("one", ("-m", "xhat")), ("two", TORCHRUN)):
        job = process(
            *own,
            "--run",
            tmp_path / name,
            "--optimizer.lr",
            "1e-2",
            "--precision",
            "float32",
            "--shard",
            shard,
            launcher=launcher,
        )
        assert job.wait(timeout=300) == 0, job.stderr.read()
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    )
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert {"denoise", "reward", "near", "away"} <= set(a["terms"])
        for name in a["terms"]:
            assert b["terms"][name] == pytest.approx(a["terms"][name], rel=1e-3, abs=1e-9), name
    assert one[-1]["terms"]["near"] > 0
    ours, theirs = (load_file(tmp_path / name / "ema.safetensors") for name in ("one", "two"))
    learned = [name for name in ours if "lora" in name]
    assert learned
    for name in learned:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-5)
