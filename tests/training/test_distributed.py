"""Two gloo processes: what one process would have done, shared out."""

import json
from pathlib import Path

import pytest
import torch
from distributed_worker import TOTAL, step
from safetensors.torch import load_file

from helpers import TINY, process

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# bf16 rounds the sums of gradients differently in each process, and Muon orthogonalizes in bf16
EXACT = ("--precision", "float32", "--optimizer.muon_lr", "0")

MULTIPLIERS = (
    *("--terms.chain.loss", "image_loss(total_variation, full_chain(ddpm, 3, random_last(3)))"),
    *("--terms.chain.weight", "dual_ascent(0.1)"),
    *("--terms.flat.loss", "image_loss(laplacian)"),
    *("--terms.flat.weight", "gradient_ratio(0.1, 2)"),
)


@pytest.mark.slow
@pytest.mark.trap(16)
def test_two_ranks_share_out_one_batch(tmp_path):
    """Gradients equal on both ranks, noise different; data, times, noise and loss those of one process."""
    worker = Path(__file__).with_name("distributed_worker.py")
    job = process(tmp_path, launcher=(*TORCHRUN, str(worker)))
    assert job.wait(timeout=300) == 0, job.stderr.read()
    ranks = [load_file(tmp_path / f"rank{r}.safetensors") for r in range(2)]
    single = step(0, 1, lambda objective: objective)
    assert torch.equal(ranks[0]["gradient"], ranks[1]["gradient"])
    assert not torch.equal(ranks[0]["drawn"], ranks[1]["drawn"])
    together = torch.stack([r["drawn"] for r in ranks], dim=1).reshape(TOTAL, -1)
    assert torch.equal(together, single["drawn"].reshape(TOTAL, -1))
    assert torch.equal(torch.cat([r["plain"] for r in ranks]), single["plain"])
    torch.testing.assert_close(ranks[0]["loss"], single["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(ranks[0]["gradient"], single["gradient"], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ranks[0]["history"], single["history"], rtol=1e-5, atol=0)
    assert torch.equal(ranks[0]["history"], ranks[1]["history"])


def test_two_processes_train_as_one_does(tmp_path, digits):
    """The command line: the same losses to float tolerance, one set of files."""
    command = ("train", "mnist", "--data", digits, "--max_steps", 6, *TINY, *EXACT, *MULTIPLIERS)
    one = process(*command, "--run", tmp_path / "one")
    two = process(*command, "--run", tmp_path / "two", launcher=(*TORCHRUN, "-m", "xhat", "--"))
    for job in (one, two):
        assert job.wait(timeout=300) == 0, job.stderr.read()
    one_row, two_row = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    )
    assert len(one_row) == len(two_row) == 6
    for a, b in zip(one_row, two_row, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["images"] == a["images"]
        assert set(b["terms"]) == set(a["terms"])
        for name in a["terms"]:
            assert b["terms"][name] == pytest.approx(a["terms"][name], rel=1e-3), name
    assert one_row[-1]["terms"]["chain.lambda"] > 0
    assert one_row[-1]["terms"]["flat.lambda"] > 0
    assert two_row[0]["grad_norm"] == pytest.approx(one_row[0]["grad_norm"], rel=1e-5)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}
