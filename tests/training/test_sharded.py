"""Weights split over gloo processes (FSDP2): what one process would have done, and a state that any number of them reads."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from helpers import TINY, process
from xhat.files.tensors import read_tensors
from xhat.runs.averages import kept_averages
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.places import checkpoints

EXACT = (
    "--precision",
    "float32",
    "--optimizer.muon_lr",
    "0.01",
    "--ema",
    "0.1",
    "--eval_every",
    "3",
    "--checkpoint_every",
    "3",
    "--averages_every",
    "3",
)
CHAIN = (
    *("--terms.chain.loss", "image_loss(total_variation, full_chain(ddpm, 3, all_steps))"),
    *("--terms.chain.weight", "dual_ascent(0.1)"),
)
CHAINS = (  # of every kind: how often each process calls the network, and differentiates a call, must be the same
    *CHAIN,
    *("--terms.rollout.loss", "image_loss(total_variation, rollout(heun, 2))"),
    *("--terms.last.loss", "image_loss(total_variation, full_chain(ddim, 4, random_last(3)))"),
    *("--terms.some.loss", "image_loss(total_variation, full_chain(ddim, 4, surrogate(2)))"),
    *("--terms.one.loss", "image_loss(total_variation, full_chain(ddim, 4, refl(3)))"),
    *("--accumulate", "2"),
)
TERMS = (
    *CHAIN,
    *("--terms.flat.loss", "image_loss(laplacian)"),
    *("--terms.flat.weight", "gradient_ratio(0.1, 2)"),
    *("--terms.free.loss", "image_loss(total_variation)"),
    *("--terms.free.weight", "conflict_free(0.2)"),
    *("--terms.free.when", "every(2)"),
)


def run(run, digits, number, *more, terms=TERMS):
    """`xhat train` on so many processes."""
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), "-m", "xhat", "--")
    command = ("train", "mnist", "--data", digits, "--max_steps", 6, *TINY, *EXACT, *terms, "--run", run, *more)
    return process(*command, **({"launcher": several} if number > 1 else {}))


def done(job):
    assert job.wait(timeout=300) == 0, job.stderr.read()


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "terms"), [("true", TERMS), ("true", CHAINS), ("blocks", CHAINS)])
def test_two_processes_that_share_the_weights_train_as_one_does(shard, terms, tmp_path, digits):
    shared = ("--shard", shard)
    one, two = (run(tmp_path / name, digits, n, *more, terms=terms) for name, n, more in (("one", 1, ()), ("two", 2, shared)))
    done(one)
    done(two)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
        assert b["terms"] == pytest.approx(a["terms"], rel=1e-4), a["step"]
        assert {k for k in a if k.startswith("eval")} == {k for k in b if k.startswith("eval")}
    kept = [one.path.relative_to(tmp_path / "one") for one in kept_averages(tmp_path / "one")]
    assert len(kept) == 4
    for file in ("ema.safetensors", *kept):
        (_, expected), (_, found) = (read_tensors(tmp_path / name / file) for name in ("one", "two"))
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
    assert [path.name for path in checkpoints(tmp_path / "two")] == ["checkpoint-00000006.split", "checkpoint-00000003.split"]
    files = {file.name for file in checkpoints(tmp_path / "two")[0].iterdir()}
    assert len(files) == 3  # of each process, and the rest
    whole, split = (newest_checkpoint(tmp_path / name)[0].state for name in ("one", "two"))
    assert whole["objective"].keys() == split["objective"].keys()
    for name, value in whole["objective"].items():
        torch.testing.assert_close(split["objective"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 2), (4, 2), ("blocks", 1), (2, "blocks")])
def test_a_state_goes_on_on_another_number_of_processes(before, after, tmp_path, digits):
    """And gathered as a whole or block by block, of 2."""
    shards = [("--shard", "blocks" if number == "blocks" else "true", "--batch_size", "8") for number in (before, after)]
    before, after = (2 if number == "blocks" else number for number in (before, after))
    terms = TERMS if "blocks" not in shards[0] + shards[1] else CHAIN
    jobs = [
        run(tmp_path / "whole", digits, 1, *shards[0], terms=terms),
        run(tmp_path / "run", digits, before, *shards[0], terms=terms),
    ]
    for job in jobs:
        done(job)
    last, _ = checkpoints(tmp_path / "run")
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    done(run(tmp_path / "run", digits, after, "--resume", *shards[1], terms=terms))
    assert checkpoints(tmp_path / "run")[0].suffix == (".split" if after > 1 else ".safetensors")
    for a, b in zip(rows(tmp_path / "whole")[3:], rows(tmp_path / "run")[3:], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        assert b["terms"] == pytest.approx(a["terms"], rel=2e-3), a["step"]
    ends = [[tmp_path / name / "ema.safetensors", kept_averages(tmp_path / name)[-1].path] for name in ("whole", "run")]
    for whole, again in zip(*ends, strict=True):
        require_near(read_tensors(whole)[1], read_tensors(again)[1])


def require_near(expected, found):
    """As a whole: Adam makes a step of the rounding of a gradient that is 0."""
    apart = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    size = sum(float(value.double().square().sum()) for value in expected.values())
    assert (apart / size) ** 0.5 < 1e-5


@pytest.mark.slow
def test_images_that_rest_on_one_process_do_not_hold_up_the_others(tmp_path, digits):
    """On a discrete schedule an image near the clean end rests in a rollout: Heun's second call is one of all processes."""
    rolled = ("--terms.rolled.loss", "image_loss(total_variation, rollout(heun, 3, last(1)))")
    more = ("--schedule", "linear_beta(20)", "--batch_size", "2", "--max_steps", "40", "--log_every", "1")
    one, two = (
        run(tmp_path / name, digits, n, *more, *shard, terms=rolled)
        for name, n, shard in (("one", 1, ()), ("two", 2, ("--shard", "blocks")))
    )
    done(one)
    done(two)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert b["terms"] == pytest.approx(a["terms"], rel=1e-3), a["step"]


BAD = """
import os
import xhat

@xhat.register
def sometimes(images):
    \"\"\"Infinite on the second process, from its fifth call on.\"\"\"
    sometimes.calls = getattr(sometimes, "calls", 0) + 1
    value = images.flatten(1).square().mean(1)
    return value * float("inf") if os.environ.get("RANK") == "1" and sometimes.calls > 5 else value
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["true", "blocks"])
def test_what_is_not_finite_on_one_process_is_named_by_all(shard, tmp_path, digits):
    (tmp_path / "parts.py").write_text(BAD)
    terms = ("--use", tmp_path / "parts.py", "--terms.own.loss", "image_loss(sometimes)", "--max_steps", "20")
    job = run(tmp_path / "run", digits, 2, "--shard", shard, terms=terms)
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert re.search(r'term "own" \(at logsnr .*\) is not finite at step \d+: ', err), err
    (kept,) = (tmp_path / "run").glob("not-finite-*-process-1.safetensors")
    state = read_tensors(kept)[1]
    assert {"x0", "t", "noise", "z"} < state.keys()
    assert all(value.shape for name, value in state.items() if name.endswith(".weight"))


@pytest.mark.slow
def test_processes_that_are_killed_at_any_moment_lose_nothing(tmp_path, digits):
    """All at once, while states are written: what is there is whole, and the run goes on to the same weights."""
    shared, folder = ("--shard", "true", "--checkpoint_every", "1", "--max_steps", "40"), tmp_path / "run"
    done(run(tmp_path / "whole", digits, 2, *shared))
    chance, resume = random.Random(0), ()
    for _ in range(3):
        job = run(folder, digits, 2, *shared, *resume)
        before = reached(folder)
        until(lambda before=before: reached(folder) > before, job)
        time.sleep(chance.random())
        kill(folder)
        job.communicate(timeout=60)
        state, damaged = newest_checkpoint(folder)
        assert (state.step > before, damaged) == (True, [])
        resume = ("--resume",)
    done(run(folder, digits, 2, *shared, *resume))
    assert [path.name for path in folder.glob(".checkpoint-*")] == []
    (_, expected), (_, found) = (read_tensors(tmp_path / name / "ema.safetensors") for name in ("whole", "run"))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def reached(folder):
    found = checkpoints(folder) if folder.exists() else []
    return int(found[0].stem.rpartition("-")[2]) if found else 0


def until(true, job):
    for _ in range(1200):
        if true():
            return
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    pytest.fail("it takes too long")


def kill(folder):
    """Every process whose command line names the run, with SIGKILL."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and str(folder) in (entry / "cmdline").read_text() and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
