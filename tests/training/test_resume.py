"""Stopping and going on: after SIGKILL, after Ctrl-C, from a damaged checkpoint; equal to the last bit."""

import json
import shlex
import signal
import time

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from helpers import TINY, process, states_equal, write_digits, xhat
from xhat import load
from xhat.files.tensors import read_tensors
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.places import WEIGHTS


def final_state(run):
    state = newest_checkpoint(run)[0].state
    times = ("seconds", "log")  # the rows of the log, whose checksum is in it, hold times
    return {key: value for key, value in state.items() if key not in times}


OBJECTIVE = (
    "--times",
    "loss_second_moment(history=1)",
    "--schedule",
    "linear_beta(4)",
    "--target",
    "v",
    "--optimizer.warmup_steps",
    "2",
    "--terms.chain.loss",
    "image_loss(total_variation, full_chain(ddpm, 3, random_last(3)))",
    "--terms.chain.weight",
    "dual_ascent(0.1)",
    "--terms.chain.when",
    "every(2)",
    "--terms.flat.loss",
    "image_loss(laplacian)",
    "--terms.flat.weight",
    "gradient_ratio(0.1, 3)",
)


@pytest.mark.trap(15)
@pytest.mark.trap(25)
def test_resume_after_sigkill_is_exact(tmp_path, digits):
    """Weights, average, both optimizers, the sampler's history, both multipliers: torch.equal to an uninterrupted run."""
    command = ("train", "mnist", "--data", digits, "--max_steps", 40, *TINY, *OBJECTIVE)
    straight = process(*command, "--run", tmp_path / "straight")
    broken = process(*command, "--run", tmp_path / "broken")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "broken").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    assert newest_checkpoint(tmp_path / "broken")[0].step < 40, "the kill came too late to test anything"
    resumed = process(*command, "--run", tmp_path / "broken", "--resume")
    for run in (straight, resumed):
        assert run.wait() == 0, run.stderr.read()
    assert "resuming from checkpoint" in resumed.stderr.read()
    a, b = final_state(tmp_path / "straight"), final_state(tmp_path / "broken")
    assert states_equal(a, b)
    assert (a["objective"]["times.counts"] > 0).all(), "the history must have been in use"
    assert a["objective"]["multipliers.chain.price"] > 0
    assert a["objective"]["multipliers.flat.factor"] > 0
    assert states_equal(read_tensors(tmp_path / "straight" / WEIGHTS)[1], read_tensors(tmp_path / "broken" / WEIGHTS)[1])
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 40, "each step is logged once"


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, digits):
    run = tmp_path / "run"
    job = process("train", "mnist", "--data", digits, "--run", run, "--max_steps", 100000, *TINY)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        time.sleep(0.05)
        assert job.poll() is None, job.stderr.read()
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 130, err
    assert f"xhat train --run {run} --resume" in out
    assert "Traceback" not in err
    stopped = newest_checkpoint(run)[0].step
    assert xhat("train", "--run", run, "--resume", "--max_steps", stopped + 2)[0] == 0
    assert newest_checkpoint(run)[0].step == stopped + 2


def test_resume_goes_back_from_a_damaged_checkpoint(tmp_path, digits, capsys):
    run = tmp_path / "run"
    xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 8, *TINY)
    expected = final_state(run)
    newest = newest_checkpoint(run)[0].path
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    code, _, err = xhat("train", "--run", run, "--resume", capsys=capsys)
    assert code == 0
    assert f"{newest.name} is damaged: it is now {newest.name}.damaged, and the run goes back" in err
    assert "resuming from checkpoint-00000004" in err
    assert states_equal(final_state(run), expected)


def test_other_data_are_refused(tmp_path, capsys):
    """The same file name with other images in it would silently be another run."""
    data, run = write_digits(tmp_path / "d.npz"), tmp_path / "run"
    xhat("train", "mnist", "--data", data, "--run", run, "--max_steps", 4, *TINY)
    write_digits(data, 40)
    code, _, err = xhat("train", "--run", run, "--resume", "--max_steps", 8, capsys=capsys)
    assert code == 2
    assert "the data are not those" in err


def test_data_that_moved_are_found_by_their_images(tmp_path, capsys):
    """--resume --data NEW goes on with the same images at another place, also where nothing is left to train."""
    (tmp_path / "disk 2").mkdir()
    data, run = write_digits(tmp_path / "d.npz"), tmp_path / "run"
    assert xhat("train", "mnist", "--data", data, "--run", run, "--max_steps", 4, *TINY)[0] == 0
    other, moved = write_digits(tmp_path / "other.npz", 40), data.rename(tmp_path / "disk 2" / "d.npz")
    capsys.readouterr()
    for options, hint in (
        ((), f'data "{data}" does not exist: if it moved, name its new place with --data'),
        (("--data", other), "the data are not those"),
        (("--data", moved, "--image_size", 4), "another config (image_size: None there, 4 here)"),
    ):
        code, _, err = xhat("train", "--run", run, "--resume", "--max_steps", 8, *options, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert hint in err
        assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(data)
    for steps in (4, 6):
        assert xhat("train", "--run", run, "--resume", "--data", moved, "--max_steps", steps)[0] == 0
        assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(moved)
        assert (load(run).config.data, load(run).step) == (str(moved), steps)


def test_the_same_images_with_other_labels_are_refused_by_a_run_that_is_told_them(tmp_path, capsys):
    """Class folders renamed between two jobs: the network would be told other names for what it has learned."""
    path = write_digits(tmp_path / "digits.npz")
    for name, labels in (("told", "true"), ("untold", "false")):
        arguments = ("train", "mnist", "--run", tmp_path / name, "--data", path, "--labels", labels, *TINY)
        assert xhat(*arguments, "--max_steps", 1)[0] == 0
    arrays = dict(np.load(path))
    np.savez(path, images=arrays["images"], labels=3 - arrays["labels"])
    code, _, err = xhat("train", "--run", tmp_path / "told", "--resume", "--max_steps", 2, capsys=capsys)
    assert (code, "the data are not those" in err) == (2, True)
    assert xhat("train", "--run", tmp_path / "untold", "--resume", "--max_steps", 2)[0] == 0


def test_a_longer_run_says_where_its_learning_rate_goes(tmp_path, digits, capsys):
    run = tmp_path / "run"
    xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 10, *TINY)
    capsys.readouterr()
    assert "learning rate" not in xhat("train", "--run", run, "--resume", capsys=capsys)[2]
    err = xhat("train", "--run", run, "--resume", "--max_steps", 12, "--max_minutes", 9, capsys=capsys)[2]
    (said,) = [line for line in err.splitlines() if "learning rate" in line]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last, first = rows[9]["lr"], rows[10]["lr"]
    assert first > last
    assert f"goes from {last:.1e} back up to {first:.1e}, since the cosine now ends at step 12 or after 9 minutes" in said


def test_printed_commands_can_be_pasted(tmp_path, digits, capsys):
    run = tmp_path / "a run's (1)"
    out = xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 1, *TINY, capsys=capsys)[1]
    words = shlex.split(out.partition("next: ")[2])
    assert words == ["xhat", "sample", str(run), "--n", "64", "--out", str(run / "samples.npz")]
    err = xhat("sample", tmp_path / "no run", "--out", tmp_path / "s.npz", capsys=capsys)[2]
    assert shlex.split(err.partition("for example ")[2])[-1] == str(tmp_path / "no run")


def test_a_finished_run_has_nothing_left_to_do(tiny_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in tiny_run.glob("*.safetensors")}
    assert xhat("train", "--run", tiny_run, "--resume", capsys=capsys)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in tiny_run.glob("*.safetensors")}


def test_lost_weights_are_written_anew(tmp_path, digits, capsys):
    """As the message about damaged weights says: --resume of a run that has ended gives them back, to the last bit."""
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--run", run, "--data", digits, "--max_steps", 3, *TINY)[0] == 0
    path = run / "ema.safetensors"
    before = {name: value.clone() for name, value in load_file(path).items()}  # the file is mapped into memory
    path.write_bytes(path.read_bytes()[:100])
    assert "resume training with --resume" in xhat("sample", run, "--n", 1, "--out", tmp_path / "s.npz", capsys=capsys)[2]
    assert xhat("train", "--run", run, "--resume")[0] == 0
    assert states_equal(load_file(path), before)
