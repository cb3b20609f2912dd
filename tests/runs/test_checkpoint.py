"""Checkpoints survive crashes: whole or absent, and the one before is still there."""

import pytest
import torch

from helpers import states_equal
from xhat.files import sweep, write_bytes
from xhat.runs.checkpoint import KEEP, newest_checkpoint, save_checkpoint

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
    assert newest.name in damaged[0]


def test_checkpoints_after_a_way_back_are_kept_and_the_damaged_ones_go(tmp_path):
    for step in (6, 8):
        damaged = save_checkpoint(tmp_path, step, STATE)
        damaged.write_bytes(b"cut")
    assert newest_checkpoint(tmp_path)[0] is None
    for step in (2, 4):
        save_checkpoint(tmp_path, step, STATE)
    assert newest_checkpoint(tmp_path)[0].step == 4
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{step:08d}.safetensors" for step in (2, 4)}


def test_what_a_killed_write_leaves_is_swept(tmp_path):
    (tmp_path / ".checkpoint-00000001.safetensors.partial").touch()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_but_tensors_and_plain_values(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_checkpoint(tmp_path, 1, {"x": object()})
    assert list(tmp_path.iterdir()) == []
