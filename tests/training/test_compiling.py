"""Whether torch.compile repays its time is decided by what this machine has shown."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import TINY, xhat
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Cosine, Discrete, Learned
from xhat.diffusion.targets import NOISE, X0
from xhat.diffusion.time_inputs import log_sigma
from xhat.runs.checkpoint import newest_checkpoint
from xhat.training import compiling
from xhat.training.compiling import COMPILING, FILE, Pace, Trial, compile_network, expected, remembered, repays_compiling


class Net(nn.Module):
    """With a batch norm, which counts its calls."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, z, t):
        return self.last(self.norm(self.first(z))) + t.reshape(-1, 1, 1, 1)


def denoiser(net):
    return Denoiser(net, Cosine(), X0)


@pytest.fixture
def trial(monkeypatch, tmp_path):
    monkeypatch.setenv("XHAT_CACHE", str(tmp_path))
    torch.manual_seed(0)
    return Trial(denoiser(Net()), torch.randn(2, 1, 8, 8), torch.rand(2), None, torch.autocast("cpu", enabled=False))


@pytest.fixture
def without_compiler(monkeypatch):
    """Compiling leaves the network as it is."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: None)


@pytest.mark.parametrize(
    ("steps", "seconds", "pays"),
    [
        (100, None, False),  # 10 s, of which 4 would be saved, for 5
        (126, None, True),
        (None, 12.0, False),
        (None, 13.0, True),
        (1000, 12.0, False),  # whichever ends first
        (100, 1000.0, False),
    ],
)
def test_what_is_saved_must_be_more_than_compiling_takes(steps, seconds, pays):
    pace = Pace(compiling=5.0, eager=0.1, compiled=0.06)
    assert pace.repays(steps, seconds) is pays
    if seconds is None:  # by its meaning: the whole training is shorter with it
        assert (pace.compiling + steps * pace.compiled < steps * pace.eager) is pays


def test_a_slower_compiled_network_never_pays():
    assert not Pace(1.0, 0.1, 0.11).repays(10**9, None)


def test_nothing_known_goes_by_what_is_expected(trial, monkeypatch):
    monkeypatch.setattr(Trial, "seconds", lambda self: 0.1)
    slow = expected(trial)
    bf16 = replace(trial, autocast=torch.autocast("cpu", torch.bfloat16))
    assert (slow.compiling, slow.eager) == (COMPILING, 0.1)
    assert slow.compiled == pytest.approx(0.1 / 1.1)
    assert expected(bf16).compiled == pytest.approx(0.1 / 1.5)
    assert not repays_compiling(trial, None, 150.0)  # the demo's budget
    assert repays_compiling(bf16, None, 150.0)


def test_what_was_measured_decides_the_next_time(trial, without_compiler, monkeypatch):
    paces = iter([0.1, 0.02])
    monkeypatch.setattr(Trial, "seconds", lambda self: next(paces))
    assert compile_network(trial) is None
    found = remembered(trial)
    assert (found.eager, found.compiled) == (0.1, 0.02)
    assert 0 < found.compiling < 5
    assert repays_compiling(trial, None, 60.0)
    assert replace(trial, z=torch.randn(4, 1, 8, 8), t=torch.rand(4)).key != trial.key


@pytest.mark.parametrize("bad", [b"", b"{}x", b'{"a": {"compiling": "much"}}'])
def test_a_damaged_memory_is_none(trial, bad, tmp_path, without_compiler, monkeypatch):
    (tmp_path / FILE).write_bytes(bad)
    monkeypatch.setattr(Trial, "seconds", lambda self: 0.1)
    assert remembered(trial) is None
    assert compile_network(trial) is None
    assert remembered(trial).compiling < 5


def test_a_cache_that_cannot_be_written_is_no_fault(trial, without_compiler, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XHAT_CACHE", str(tmp_path / "file"))
    assert compile_network(trial) is None


@pytest.mark.parametrize("learned", [False, True])
def test_a_trial_leaves_the_network_as_it_was(trial, learned):
    """And the schedule, where the network sees how noisy an image is by one that is learned."""
    if learned:
        own = Denoiser(trial.net, Learned(), NOISE, time_input=log_sigma)
        trial = replace(trial, denoiser=own)
    before = {name: x.clone() for name, x in trial.net.state_dict().items()}
    assert trial.seconds() > 0
    after = trial.net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in trial.denoiser.parameters())


def test_short_budgets_are_not_tried(trial, monkeypatch):
    monkeypatch.setattr(compiling, "expected", lambda trial: pytest.fail("tried"))
    monkeypatch.setattr(compiling, "remembered", lambda trial: pytest.fail("tried"))
    assert not repays_compiling(trial, 99, None)
    assert not repays_compiling(trial, None, 9.0)


def test_a_run_goes_on_as_it_began(digits, tmp_path, monkeypatch):
    """Compiled or not: the two round otherwise. What has been measured since does not change it."""
    run, asked = tmp_path / "run", []

    def decide(trial, steps, seconds):
        asked.append(steps)
        return False

    monkeypatch.setattr("xhat.training.train.repays_compiling", decide)
    tiny = [word for word in TINY if word not in ("--compile", "off")]
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 2, *tiny)[0] == 0
    assert newest_checkpoint(run)[0].state["compiled"] is False
    assert xhat("train", "--run", run, "--resume", "--max_steps", 4)[0] == 0
    assert asked == [2]


def test_a_model_of_diffusers_is_tried_as_it_is_trained(trial):
    """Its timesteps are its own, and its output comes in a dataclass."""
    diffusers = pytest.importorskip("diffusers")
    blocks = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = diffusers.UNet2DModel(8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4, **blocks)
    assert replace(trial, denoiser=Denoiser(model, Discrete.linear_beta(1000))).seconds() > 0


def test_a_frozen_network_is_tried_forward_alone(trial):
    trial.net.requires_grad_(False)
    assert trial.seconds() > 0


def test_what_fails_is_left_to_the_training(trial):
    """It has the words for it: there is not enough memory, for example."""

    class Failing(Net):
        def forward(self, z, t):
            raise RuntimeError("out of memory")

    assert not repays_compiling(replace(trial, denoiser=denoiser(Failing())), 1000, None)


def test_a_failure_leaves_the_network_and_the_run_without(digits, tmp_path, monkeypatch):
    """A resume does not begin to compile what was not compiled."""

    def broken(self, **how):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(nn.Module, "compile", broken)
    run = tmp_path / "run"
    tiny = [word for word in TINY if word not in ("--compile", "off")]
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 2, "--compile", "on", *tiny)[0] == 0
    assert newest_checkpoint(run)[0].state["compiled"] is False


def test_a_second_training_of_a_compiled_network_measures_the_eager_one(trial, monkeypatch):
    trial.net._compiled_call_impl = lambda *a, **k: pytest.fail("compiled")
    assert trial.eager_seconds() > 0
    assert trial.net._compiled_call_impl is not None


class Caching(Net):
    """Keeps a buffer as large as the batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, 1))

    def forward(self, z, t):
        self.cache = torch.zeros(len(z), 1)
        return super().forward(z, t)


def test_a_cache_of_the_network_is_no_failure(trial, without_compiler):
    assert compile_network(replace(trial, denoiser=denoiser(Caching()))) is None
