"""Weights that were saved in the wrappers of DDP, torch.compile and AveragedModel, in our own files and in diffusers'."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers import xhat
from xhat import load
from xhat.files.seal import KEY
from xhat.networks.wrappers import named_for, unwrapped
from xhat.runs.places import WEIGHTS

WRAPPED = {
    "ddp": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "the network alone": lambda name: name.replace("net.", "net._orig_mod.module.", 1) if name.startswith("net.") else name,
}


def wrapped_copy(source, target, rename):
    with safe_open(source, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key not in ("format", KEY)}
    save_file({rename(name): value for name, value in load_file(source).items()}, target, metadata=metadata)
    return target


@pytest.mark.parametrize("how", WRAPPED)
def test_our_own_files(how, tiny_run, tmp_path):
    path = wrapped_copy(tiny_run / WEIGHTS, tmp_path / WEIGHTS, WRAPPED[how])
    expected = load(tiny_run).denoiser.state_dict()
    found = load(path).denoiser.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    start = (
        "train",
        "--init",
        path,
        "--run",
        tmp_path / "run",
        "--max_steps",
        1,
        "--optimizer.lr",
        0,
        "--optimizer.muon_lr",
        0,
    )
    assert xhat(*start)[0] == 0
    trained = load(tmp_path / "run").denoiser.state_dict()
    assert all(torch.allclose(trained[name], value) for name, value in expected.items())


def test_a_prefix_that_some_names_lack_is_a_part_of_the_network():
    names = ["module.a", "module.b", "head"]
    assert unwrapped(names) == {n: n for n in names}
    assert unwrapped(["module.module.a", "module.b"]) == {"module.module.a": "module.a", "module.b": "b"}


def test_a_network_whose_only_part_is_called_module_keeps_it():
    tensors = {"net.module.a": torch.zeros(1), "schedule.x": torch.ones(1)}
    assert named_for(set(tensors), tensors, "net.").keys() == tensors.keys()
    assert named_for({"net.a", "schedule.x"}, tensors, "net.").keys() == {"net.a", "schedule.x"}


def test_an_average_of_weights_loses_its_counter():
    network = nn.Linear(2, 2)
    names = list(AveragedModel(network).state_dict())
    assert sorted(unwrapped(names).values()) == sorted(network.state_dict())
    assert unwrapped(["n_averaged", "a"]) == {"n_averaged": "n_averaged", "a": "a"}
