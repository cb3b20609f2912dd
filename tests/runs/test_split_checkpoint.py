"""A state in a folder: what is damaged is noticed, and what was not finished is not there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from xhat.errors import RunError
from xhat.files.atomic import digest_of
from xhat.files.values import write_values
from xhat.runs.checkpoint import drop_old, newest_checkpoint
from xhat.runs.places import checkpoints
from xhat.runs.split_checkpoint import DRAFT, STATE

VALUES = torch.arange(6.0).reshape(3, 2)


def write(run, step):
    """As two processes do it, of which each holds some rows."""
    path = run / f"checkpoint-{step:08d}.split"
    path.mkdir()
    for rank, rows in enumerate((VALUES[:2], VALUES[2:])):
        told = {"DCP_SHARDING_INFO": json.dumps({"/x": {"saved_offsets": [2 * rank, 0]}})}
        save_file({"/x": rows.contiguous()}, path / f"shard-{rank}.safetensors", told)
    files = {file.name: digest_of(file).hex() for file in path.iterdir()}
    tree = {"dict": [["x", {"tensor": "/x"}], ["n", step]]}
    write_values(path / STATE, {"step": step, "tree": json.dumps(tree), "files": files})
    return path


def test_it_is_read_whole(tmp_path):
    write(tmp_path, 3)
    found, damaged = newest_checkpoint(tmp_path)
    assert (found.step, found.state["n"], damaged) == (3, 3, [])
    assert torch.equal(found.state["x"], VALUES)
    seen = []
    found.placed(lambda name, x: seen.append((name, x.shape)) or x)
    assert set(seen) == {("/x", (3, 2))}


@pytest.mark.parametrize("harm", ["cut", "bit", "missing", "no state"])
def test_what_is_damaged_is_noticed(tmp_path, harm):
    write(tmp_path, 3)
    newest = write(tmp_path, 4)
    file = newest / "shard-1.safetensors"
    data = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(data[:-1])
    elif harm == "bit":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        (file if harm == "missing" else newest / STATE).unlink()
    found, damaged = newest_checkpoint(tmp_path)
    assert (found.step, damaged) == (3, [newest])
    shutil.rmtree(tmp_path / "checkpoint-00000003.split")
    with pytest.raises(RunError, match=r"all checkpoints of .* are damaged"):
        newest_checkpoint(tmp_path)


def test_old_ones_go_and_drafts_are_none(tmp_path):
    paths = [write(tmp_path, step) for step in (1, 2, 3)]
    (tmp_path / DRAFT.format("checkpoint-00000009.split")).mkdir()
    drop_old(tmp_path)
    assert checkpoints(tmp_path) == [paths[2], paths[1]]
