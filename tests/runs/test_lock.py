"""One process at a time in the folder of a run or a study, and nothing left of it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from helpers import TINY, process, xhat
from xhat.errors import RunError
from xhat.files import locks
from xhat.runs.lock import LOCK_FILE, reserved

HOLD = """
import sys, xhat.runs.lock as l
with l.reserved(l.Path(sys.argv[1]), 'training in', '--run'):
    print(flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has reserved tmp_path/run."""
    job = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdout.readline()
    yield job
    job.kill()
    job.wait()


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_killed(holder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"another process is training in .*run: wait for it or choose another --run$"):
        reserved(run, "training in", "--run").__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (run / LOCK_FILE).exists(), "a killed process cleans up nothing"
    with reserved(run, "training in", "--run"):
        assert (run / LOCK_FILE).exists()
    assert not (run / LOCK_FILE).exists()


def test_train_and_compare_are_refused_in_one_line_and_leave_the_folder_alone(tiny_run, digits, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"base": "mnist", "common": {"data": str(digits)}, "changes": {"a": None}}))
    (tiny_run / ".some.partial").write_text("of the process that is training")
    for folder, command in (
        (tiny_run, ("train", "--run", tiny_run, "--resume")),
        (tmp_path / "new", ("train", "mnist", "--run", tmp_path / "new", "--data", digits, *TINY)),
        (tmp_path / "out", ("compare", study, "--out", tmp_path / "out")),
    ):
        with reserved(folder, "busy in", "--run"):
            before = sorted(p.name for p in folder.iterdir())
            code, out, err = xhat(*command, capsys=capsys)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"another process is {'comparing' if command[0] == 'compare' else 'training'} in {folder}" in err
            assert sorted(p.name for p in folder.iterdir()) == before
    (tiny_run / ".some.partial").unlink()
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "out").exists()


def test_a_start_that_will_be_refused_keeps_nobody_out(tiny_run, digits, capsys):
    """For the moment it took to say so, it kept a resume of the same run out."""
    with reserved(tiny_run, "busy in", "--run"):
        code, _, err = xhat("train", "mnist", "--run", tiny_run, "--data", digits, *TINY, capsys=capsys)
        assert (code, "holds a run already: add --resume" in err) == (2, True)


def test_many_starts_on_one_new_folder_are_one_run(tmp_path):
    """Each in a thread with its own open file; whoever comes first has it, also while folders and files come and go."""
    run, inside, most, refused = tmp_path / "deep" / "run", [], [], []

    def start():
        for _ in range(60):
            try:
                with reserved(run, "training in", "--run"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except RunError:
                refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 360
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_file_system_without_locks_costs_a_note(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with pytest.warns(UserWarning, match="has no locks"), reserved(tmp_path / "run", "training in", "--run"):
        pass


def test_a_lock_file_that_cannot_be_removed_is_named_and_keeps_nobody_out(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with (
        pytest.warns(UserWarning, match=r"/run/\.lock stays: Input/output error"),
        reserved(tmp_path / "run", "training in", "--run"),
    ):
        monkeypatch.setattr(os, "unlink", broken)
    monkeypatch.undo()
    with reserved(tmp_path / "run", "training in", "--run"):
        pass
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, err = xhat("train", "mnist", "--run", tmp_path / "file" / "run", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write" in err


@pytest.mark.slow
def test_a_running_job_outlives_a_second_one(tmp_path, digits):
    """The second one swept away what the first was writing."""
    run = tmp_path / "run"
    first = process("train", "mnist", "--run", run, "--data", digits, "--max_steps", 300, *TINY, "--checkpoint_every", 1)
    while not list(run.glob("checkpoint-*")):
        time.sleep(0.05)
        assert first.poll() is None, first.stderr.read()
    second = process("train", "--run", run, "--resume")
    assert (second.wait(timeout=120), first.wait(timeout=120)) == (2, 0), first.stderr.read()
    assert "another process is training" in second.stderr.read()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 301))


@pytest.mark.slow
def test_all_ranks_are_refused(holder, tmp_path, digits):
    """One holds no lock, and must not wait for one that has given up."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "xhat", "--")
    job = process("train", "mnist", "--run", tmp_path / "run", "--data", digits, *TINY, launcher=launcher)
    assert job.wait(timeout=200) != 0
    assert job.stderr.read().count("another process is training in") == 1
    assert [p.name for p in (tmp_path / "run").iterdir()] == [LOCK_FILE]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_that_outlives_the_run_keeps_nobody_out(tmp_path):
    """A worker that reads data ends some seconds after a training that was killed."""
    script = f"""
import os, sys, time
from pathlib import Path
from xhat.runs.lock import reserved
with reserved(Path({str(tmp_path / "run")!r}), "training in", "--run"):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""
    job = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(job.stdout.readline())
    try:
        job.kill()
        job.wait()
        with reserved(tmp_path / "run", "training in", "--run"):
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
