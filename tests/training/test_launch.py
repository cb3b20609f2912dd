"""The files of examples/launch: what they start trains; a job whose time is up goes back into the queue, and on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import TINY, write_digits
from xhat.errors import RunError
from xhat.runs.checkpoint import newest_checkpoint
from xhat.training.launched import require_plain_launch

LAUNCH = Path(__file__).parent.parent.parent / "examples" / "launch"
FAKES = {
    "srun": 'exec "$@"\n',
    "scontrol": 'echo "$@" >> "$ASKED"\nif [ "$1" = show ]; then echo localhost; fi\n',
}


@pytest.fixture
def started(tmp_path):
    """A command with the environment of this interpreter first, and SLURM's commands as far as the script needs them."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in FAKES.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}")
        (tools / name).chmod(0o755)
    path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"]))
    slurm = {"SLURM_JOB_NODELIST": "a", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "ASKED": str(tmp_path / "asked"), **slurm}

    def start(*words, **more):
        command = [str(word) for word in words]
        return subprocess.Popen(
            command, env={**os.environ, **own, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def ended(job):
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    return out + err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "accelerate"])
def test_two_processes_train(how, started, tmp_path):
    data = write_digits(tmp_path / "digits.npz")
    words = ("--run", tmp_path / "run", "--data", data, "--max_steps", 3, *TINY)
    accelerate = ("accelerate", "launch", "--config_file", LAUNCH / "accelerate.yaml", "-m", "xhat", "train")
    launcher = ("sh", LAUNCH / "torchrun.sh", 2) if how == "torchrun" else accelerate
    ended(started(*launcher, "mnist", *words))
    assert newest_checkpoint(tmp_path / "run")[0].state["shared_out"] == [2, 1]


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_back_into_the_queue_and_on(started, tmp_path):
    data, run = write_digits(tmp_path / "digits.npz"), tmp_path / "run"
    words = ("bash", LAUNCH / "slurm.sh", run, "mnist", "--data", data, "--max_steps", 4000, *TINY)
    job = started(*words)
    until(lambda: (run / "metrics.jsonl").exists(), job)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=120)
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "requeue 7"
    reached = newest_checkpoint(run)[0].step
    assert 0 < reached < 4000
    job = started(*words, SLURM_RESTART_COUNT="1")
    until(lambda: newest_checkpoint(run)[0].step > reached, job)
    job.send_signal(signal.SIGTERM)
    assert f"resuming from checkpoint-{reached:08d}" in "".join(job.communicate(timeout=120))


@pytest.mark.slow
def test_what_ends_with_an_error_stays_ended(started, tmp_path):
    job = started("bash", LAUNCH / "slurm.sh", tmp_path / "run", "no-such-preset")
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "no-such-preset" in err
    assert "requeue" not in (tmp_path / "asked").read_text()


def until(true, job):
    for _ in range(600):
        if true():
            return
        assert job.poll() is None, job.communicate()
        time.sleep(0.1)
    pytest.fail("it takes too long")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", "--shard true"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "--shard true"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--compile"),
    ],
)
def test_what_the_launcher_may_not_decide(name, value, said, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=said):
        require_plain_launch()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("ACCELERATE_MIXED_PRECISION", "bf16", "--precision"), ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--accumulate")],
)
def test_what_of_the_launcher_changes_nothing(name, value, said, monkeypatch, recwarn):
    for nothing in ("no" if "PRECISION" in name else "1", ""):
        monkeypatch.setenv(name, nothing)
        require_plain_launch()
    assert not recwarn.list
    monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=said):
        require_plain_launch()
