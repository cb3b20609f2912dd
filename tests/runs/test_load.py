"""A trained model comes back out of its weights file, or says in one line why not."""

import json

import pytest
import torch

from xhat.errors import RunError
from xhat.files.tensors import read_tensors, write_tensors
from xhat.runs.load import load
from xhat.runs.places import WEIGHTS
from xhat.runs.weights import read_weights, save_weights


def rewritten(run, path, **changes):
    """A copy of a run's weights file with other metadata."""
    metadata, tensors = read_tensors(run / WEIGHTS)
    write_tensors(path, tensors, metadata | changes)
    return path


def test_what_was_saved_is_loaded(tiny_run, tmp_path):
    """From the folder and from the file alone, in evaluation mode; saved again it is the same to the last bit."""
    trained = load(tiny_run)
    assert not trained.denoiser.training
    assert (trained.step, trained.shape.classes) == (10, 4)
    save_weights(tmp_path / "again.safetensors", trained.denoiser.state_dict(), trained.config, trained.shape, trained.step)
    first, second = read_weights(tiny_run), read_weights(tmp_path / "again.safetensors")
    assert (first.values, first.shape, first.step) == (second.values, second.shape, second.step)
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_a_config_that_is_none_is_damage(tiny_run, tmp_path):
    path = rewritten(tiny_run, tmp_path / "w.safetensors", config="{}")
    with pytest.raises(RunError, match=r"w\.safetensors is damaged"):
        load(path)


def test_weights_of_another_config_are_refused(tiny_run, tmp_path):
    values = read_weights(tiny_run).values | {"network": "unet(widths=(16, 8), blocks=(1, 1), embedding=16)"}
    path = rewritten(tiny_run, tmp_path / "w.safetensors", config=json.dumps(values))
    with pytest.raises(RunError, match="does not hold the weights of its own config"):
        load(path)
