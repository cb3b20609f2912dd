"""Checkpoints survive crashes: whole or absent, and the one before is still there."""

import errno
import os

import pytest
import torch

from helpers import states_equal
from xhat.errors import RunError
from xhat.runs.checkpoint import KEEP, newest_checkpoint, save_checkpoint, set_aside
from xhat.runs.places import checkpoints

STATE = {
    "weights": {"a": torch.randn(3, 2), "table": torch.rand(4, dtype=torch.float64), "n": torch.tensor(7)},
    "optimizers": [{"state": {0: {"step": torch.tensor(2.0)}, 1: {}}, "param_groups": [{"betas": (0.9, 0.99), "lr": 1e-3}]}],
    "seconds": 1.25,
    "none": None,
    "empty": {},
}


def test_round_trip_is_exact(tmp_path):
    save_checkpoint(tmp_path, 12, STATE)
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint.step == 12
    assert damaged == []
    assert states_equal(checkpoint.state, STATE)


def test_only_the_last_ones_are_kept(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, step, STATE)
    assert len(list(tmp_path.iterdir())) == KEEP
    assert newest_checkpoint(tmp_path)[0].step == 4


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_checkpoint_cut_short_falls_back_to_the_one_before(tmp_path, keep):
    save_checkpoint(tmp_path, 1, STATE)
    newest = save_checkpoint(tmp_path, 2, STATE)
    newest.write_bytes(newest.read_bytes()[:keep])
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint.step == 1
    assert damaged == [newest]


def test_damaged_ones_are_set_aside_and_a_run_starts_from_none_of_them(tmp_path):
    for step in (6, 8):
        save_checkpoint(tmp_path, step, STATE)
    newest = tmp_path / "checkpoint-00000008.safetensors"
    newest.write_bytes(b"cut")
    assert set_aside(newest_checkpoint(tmp_path)[1]) == [
        f"{newest.name} is damaged: it is now {newest.name}.damaged, and the run goes back to the checkpoint before it"
    ]
    save_checkpoint(tmp_path, 7, STATE)
    assert newest_checkpoint(tmp_path)[0].step == 7
    names = {"checkpoint-00000006.safetensors", "checkpoint-00000007.safetensors", f"{newest.name}.damaged"}
    assert {p.name for p in tmp_path.iterdir()} == names
    for step in (6, 7):
        (tmp_path / f"checkpoint-{step:08d}.safetensors").write_bytes(b"cut")
    with pytest.raises(
        RunError, match=r"all checkpoints of .* are damaged \(checkpoint-00000007.safetensors, checkpoint-00000006"
    ):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_what_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, number):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, STATE)

    def refuse(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(OSError, match="checkpoint-00000002") as raised:
        newest_checkpoint(tmp_path)
    assert raised.value.errno == number


def test_copies_of_other_names_are_the_users_own(tmp_path):
    first = save_checkpoint(tmp_path, 1, STATE)
    own = [
        tmp_path / name for name in ("checkpoint-best.safetensors", "checkpoint-00000001 copy.safetensors", "checkpoint-1.pt")
    ]
    for path in own:
        path.write_bytes(first.read_bytes())
    for step in range(2, 6):
        save_checkpoint(tmp_path, step, STATE)
    assert all(path.exists() for path in own)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step:08d}.safetensors" for step in (5, 4)]


def test_steps_of_more_digits_come_last(tmp_path):
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, STATE)
    assert newest_checkpoint(tmp_path)[0].step == 100_000_000


def test_nothing_but_tensors_and_plain_values(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_checkpoint(tmp_path, 1, {"x": object()})
    assert list(tmp_path.iterdir()) == []
