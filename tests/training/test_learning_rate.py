"""Warm-up and cosine, for each optimizer from its own peak, and what is said when another budget moves them."""

import pytest
import torch

from helpers import TINY, xhat
from xhat.config.config import Config
from xhat.config.options import OptimizerConfig
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.metrics import read_metrics
from xhat.training.budget import Budget
from xhat.training.learning_rate import LearningRate, learning_rate_factor, rate_jump


def test_learning_rate_warms_up_and_decays_to_zero():
    assert learning_rate_factor(0, 0.0, 10) == pytest.approx(0.1)
    assert learning_rate_factor(9, 0.0, 10) == 1
    assert learning_rate_factor(500, 0.5, 10) == pytest.approx(0.5)
    assert learning_rate_factor(1000, 1.0, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(0, 0.0, 0) == 1


def test_each_optimizer_decays_from_its_own_peak():
    """Steps, then seconds, whichever limit is nearer."""
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizers = [torch.optim.SGD([w], lr=lr) for w, lr in zip(weights, (0.1, 2.0), strict=True)]
    rates = LearningRate(optimizers, Budget(4, max_steps=8, max_minutes=1), warmup_steps=2)
    for step, seconds, factor in ((0, 0.0, 0.5), (4, 0.0, 0.5), (2, 30.0, 0.5), (2, 15.0, 0.5 + 0.125**0.5)):
        assert rates.set(step, seconds) == pytest.approx(0.1 * factor)
        assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([0.1 * factor, 2.0 * factor])


def test_an_optimizer_that_has_loaded_a_state_is_still_set():
    """Of a resumed run, whose state has the rate of its last step: the peak is the config's."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer, before = (torch.optim.SGD([weight], lr=lr) for lr in (2.0, 0.3))
    rates = LearningRate([optimizer], Budget(4, max_steps=8), warmup_steps=0)
    optimizer.load_state_dict(before.state_dict())
    rates.set(4, 0.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


def test_a_run_is_trained_with_the_rates_that_it_logs(tmp_path, digits):
    """Both optimizers' own, as the checkpoint holds them; also where the run is resumed."""
    run, peaks = tmp_path / "run", ("--optimizer.lr", 1e-3, "--optimizer.muon_lr", 1e-2, "--optimizer.warmup_steps", 2)
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 4, *TINY, *peaks)[0] == 0
    for steps in (4, 6):
        assert xhat("train", "--run", run, "--resume", "--max_steps", steps)[0] == 0
        logged, (adam, muon) = read_metrics(run)[-1]["lr"], newest_checkpoint(run)[0].state["optimizers"]
        assert logged < 5e-4
        assert {group["lr"] for group in adam["param_groups"]} == {logged}
        assert muon["param_groups"][0]["lr"] == pytest.approx(10 * logged)


def config(**values):
    return Config(batch_size=10, optimizer=OptimizerConfig(lr=1.0, warmup_steps=0), **values)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"max_steps": 100}, {"max_steps": 100}, None),
        ({"max_steps": 100}, {"max_images": 1000}, None),
        ({"max_steps": 100}, {"max_images": 4000}, "from 1.0e-01 back up to 9.0e-01, since the cosine now ends at step 400"),
        (
            {"max_minutes": 1.0},
            {"max_minutes": 4.0},
            "from 5.0e-01 back up to 9.6e-01, since the cosine now ends after 4 min",
        ),
        ({"max_steps": 400}, {"max_steps": 100}, "from 9.5e-01 down to 3.5e-01"),
        ({"max_steps": 10000}, {"max_steps": 20000}, None),
        ({"max_steps": 100}, {"max_steps": 50}, None),  # nothing left to train
    ],
)
def test_when_the_rate_jumps(before, now, said):
    step = 80 if before == {"max_steps": 100} and now == {"max_images": 4000} else 60
    found = rate_jump(config(**before), config(**now), step, 30.0)
    assert found is None if said is None else said in (found or ""), found
