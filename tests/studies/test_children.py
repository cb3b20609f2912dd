"""The trainings of a study end with it, however it ends; until then nobody else compares there."""

import os
import signal
import time

import pytest
import yaml

from helpers import process
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.metrics import read_metrics
from xhat.runs.weights import read_weights

COMMON = {
    "network": "unet(widths=(8, 8), blocks=(1, 1), embedding=16)",
    "batch_size": 16,
    "log_every": 1,
    "compile": "off",
    "checkpoint_every": 5,
    "sample_every": 100000,
    "sampling.steps": 3,
}


def children(parent):
    """Process numbers of the children of a process, of theirs, and so on."""
    found, todo = [], [parent]
    while todo:
        at = todo.pop()
        for task in os.listdir(f"/proc/{at}/task") if os.path.exists(f"/proc/{at}") else ():
            with open(f"/proc/{at}/task/{task}/children") as file:
                new = [int(number) for number in file.read().split()]
            found += new
            todo += new
    return found


def alive(numbers):
    return [number for number in numbers if os.path.exists(f"/proc/{number}")]


@pytest.fixture
def study(tmp_path, digits):
    def write(steps):
        common = {**COMMON, "data": str(digits), "max_steps": steps}
        values = {"base": "mnist", "common": common, "changes": {"a": None, "b": {"schedule": "flow"}}, "samples": 4}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def started(study, out):
    """A comparison whose two trainings have both come to a checkpoint."""
    job = process("compare", study, "--out", out, "--jobs", 2)
    while len({path.parent for path in out.glob("*/seed-0/ema.safetensors")}) < 2:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    return job, [number for number in children(job.pid) if number != job.pid]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_children_save_and_end_with_their_parent(study, tmp_path, number):
    out = tmp_path / "out"
    job, trainings = started(study(1_000_000), out)
    assert len(alive(trainings)) >= 2
    job.send_signal(number)
    _, err = job.communicate(timeout=60)
    assert job.returncode == (-9 if number == signal.SIGKILL else 128 + number), err
    assert "Traceback" not in err
    deadline = time.monotonic() + 30
    while alive(trainings):
        assert time.monotonic() < deadline, "the trainings go on"
        time.sleep(0.05)
    for change in ("a", "b"):
        run = out / change / "seed-0"
        step = newest_checkpoint(run)[0].step
        assert step == read_weights(run).step == read_metrics(run)[-1]["step"]
        assert "stopped and saved at step" in run.with_suffix(".log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads /proc")
def test_a_second_comparison_waits_for_the_trainings_of_a_killed_one_and_goes_on(study, tmp_path):
    out = tmp_path / "out"
    path = study(60)
    job, trainings = started(path, out)
    os.kill(trainings[0], signal.SIGSTOP)  # it saves as slowly as can be
    job.kill()
    job.wait()
    second = process("compare", path, "--out", out)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert err == f"xhat compare: another process is comparing in {out}: wait for it or choose another --out\n"
    os.kill(trainings[0], signal.SIGCONT)
    while alive(trainings):
        time.sleep(0.05)
    third = process("compare", path, "--out", out, "--jobs", 2)
    _, err = third.communicate(timeout=240)
    assert third.returncode == 0, err
    assert [row["step"] for row in read_metrics(out / "a" / "seed-0")] == list(range(1, 61))
    assert (out / "report.html").exists()
    assert not list(out.rglob(".*")), "nothing is left behind"
