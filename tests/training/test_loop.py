"""One step of a run: what the objective's own gradients and the optimizers make of it."""

import time

import pytest
import torch
from accelerate import Accelerator

from helpers import set_up_config, write_digits
from xhat.config.config import Config
from xhat.config.options import OptimizerConfig
from xhat.rng import Shard
from xhat.training.loop import Loop
from xhat.training.stop import Stop

NETWORK = "unet(widths=(8, 8), blocks=(1, 1), embedding=16)"


@pytest.fixture
def start(tmp_path):
    """A loop before its first step, by config values."""
    data, stop = str(write_digits(tmp_path / "digits.npz")), Stop()

    def make(asked=False, **values):
        optimizer = OptimizerConfig(grad_clip=0.1, warmup_steps=2, muon_lr=0.02)
        how = {"batch_size": 8, "max_steps": 4, "precision": "float32", "optimizer": optimizer}
        stop.asked = asked
        return Loop(set_up_config(Config(data=data, network=NETWORK, **(how | values))), stop, time.perf_counter())

    yield make
    stop.restore()
    Accelerator().free_memory()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_are_the_objectives_on_the_whole_batch_clipped(start, accumulate):
    """And the weights have not changed, nor the step."""
    loop, whole = start(accumulate=accumulate), start()
    objective = whole.state.objective
    batch = whole.setup.feed.get(0, Shard(0, 8), 8)
    loss = objective(batch.x0, step=0, cond=batch.cond, shard=Shard(0, 8))["loss"]
    expected = torch.autograd.grad(loss, [p for p in objective.parameters() if p.requires_grad])
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert norm > 0.1, "there must be something to clip"
    step = loop.gradients()
    assert float(step.losses["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(step.norm) == pytest.approx(float(norm), rel=1e-4)
    assert (step.finite, step.asked) == (True, False)
    for p, before, g in zip(loop.state.objective.parameters(), objective.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g * 0.1 / norm, rtol=1e-3, atol=1e-6)
        assert torch.equal(p, before)
    assert loop.state.step == 0
    adam, muon = loop.state.optimizers
    assert [adam.param_groups[0]["lr"], muon.param_groups[0]["lr"]] == pytest.approx([step.rate, 10 * step.rate])
    assert step.rate == pytest.approx(0.5 * 2e-3)


def test_a_step_moves_weights_and_average_and_counts(start):
    loop = start()
    before = [p.detach().clone() for p in loop.state.objective.parameters()]
    loop.gradients()
    loop.update()
    assert loop.state.step == 1
    assert loop.progress() == 0.25
    assert all(p.grad is None for p in loop.state.objective.parameters())
    assert not all(torch.equal(p, b) for p, b in zip(loop.state.objective.parameters(), before, strict=True))
    ours, theirs = loop.state.averaged(), loop.state.objective.denoiser
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q), "the average of one is the one"


def test_a_wish_to_stop_and_a_step_that_is_not_finite_are_told(start):
    loop = start(asked=True)
    with torch.no_grad():
        next(iter(loop.state.objective.parameters())).fill_(torch.nan)
    step = loop.gradients()
    assert (step.finite, step.asked) == (False, True)
