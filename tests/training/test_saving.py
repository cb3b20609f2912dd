"""A state is copied between two steps and written while training goes on: it is the state of its step, and of no other."""

import errno
import threading

import pytest
import torch
from safetensors.torch import load_file

import xhat
from helpers import states_equal
from xhat.files.tensors import Copied
from xhat.runs.checkpoint import newest_checkpoint


def objective():
    torch.manual_seed(0)
    network = xhat.UNet(widths=(8,), blocks=(1,), embedding=8, size=4)
    return xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), {"denoise": xhat.Term(xhat.Denoising(xhat.V))})


class Slow(xhat.Callback):
    """The disk is so slow that nothing is on it before a later step; what is not written by then never is."""

    def __init__(self, monkeypatch, until):
        self.until, self.go, self.heard, self.beside = until, threading.Event(), [], []
        write = Copied.write

        def slow(copied, path):
            assert self.go.wait(60), "training waits for the disk"
            write(copied, path)

        monkeypatch.setattr(Copied, "write", slow)

    def step(self, at):
        self.heard.append(("step", at.step))
        if at.step >= self.until:
            self.go.set()
        elif at.step >= 4:
            self.beside.append(at.step)
            assert not list(at.run.glob("checkpoint-*"))

    def saved(self, at):
        self.heard.append(("saved", at.step))
        assert at.path.exists()
        assert (at.run / f"checkpoint-{at.step:08d}.safetensors").exists()


HOW = {"max_steps": 12, "batch_size": 4, "checkpoint_every": 4, "log_every": 4, "sample_every": 100}
DATA = torch.linspace(-1, 1, 32 * 16).reshape(32, 1, 4, 4)


def test_training_goes_on_while_a_state_is_written(tmp_path, monkeypatch):
    xhat.fit(objective(), DATA, tmp_path / "plain", callbacks=[Stops(4)], **HOW)
    slow = Slow(monkeypatch, until=7)
    xhat.fit(objective(), DATA, tmp_path / "run", callbacks=[slow, Stops(8)], **HOW)
    assert slow.beside == [4, 5, 6]
    at = slow.heard.index(("saved", 4))
    assert ("step", 7) in slow.heard[:at]
    assert slow.heard[-1] == ("saved", 8)
    wanted, found = (xhat_state(tmp_path / name, "checkpoint-00000004") for name in ("plain", "run"))
    assert states_equal(wanted["objective"], found["objective"])
    assert states_equal(wanted["optimizers"], found["optimizers"])
    assert states_equal(wanted["average"], found["average"])


class Stops(xhat.Callback):
    def __init__(self, after):
        self.after = after

    def step(self, at):
        if at.step == self.after:
            at.stop()


def xhat_state(run, name):
    for other in run.glob("checkpoint-*"):
        if other.stem != name:
            other.unlink()
    return newest_checkpoint(run)[0].state


def test_a_full_disk_is_said_and_the_state_before_goes_on(tmp_path, monkeypatch):
    write = Copied.write

    def full(copied, path):
        if path.name == "checkpoint-00000008.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(copied, path)

    with monkeypatch.context() as patched:
        patched.setattr(Copied, "write", full)
        with pytest.raises(OSError, match="No space left") as raised:
            xhat.fit(objective(), DATA, tmp_path / "run", **HOW)
    assert raised.value.filename.endswith("checkpoint-00000008.safetensors")
    assert newest_checkpoint(tmp_path / "run")[0].step == 4
    xhat.fit(objective(), DATA, tmp_path / "run", resume=True, **HOW)
    xhat.fit(objective(), DATA, tmp_path / "whole", **HOW)
    runs = [load_file(tmp_path / name / "ema.safetensors") for name in ("run", "whole")]
    assert states_equal(*runs)
