"""The power-function average against its definition."""

import numpy as np
import pytest
import torch

from xhat.runs.averages import power_exponent
from xhat.training.ema import PowerAverage


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_exponent_gives_the_width(width):
    """EDM2's formula, and the numerical standard deviation of the profile s^gamma on [0, 1]."""
    gamma = power_exponent(width)
    assert (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5) == pytest.approx(width, rel=1e-9)
    s = np.linspace(0, 1, 200001)
    weight = s**gamma / (s**gamma).sum()
    mean = (weight * s).sum()
    assert np.sqrt((weight * (s - mean) ** 2).sum()) == pytest.approx(width, rel=1e-4)


def test_exponent_of_the_papers_widths():
    """Karras et al. 2024, section 3.1: gamma = 16.97 for 5 % and 6.94 for 10 %."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=5e-3)


def test_average_weighs_steps_by_their_power():
    """Of the weights 1, 2, ..., n: the recurrence exactly, its closed form n (gamma+1)/(gamma+2) up to a step or two."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    average = PowerAverage(model, 0.1)
    n, gamma, expected = 2000, power_exponent(0.1), 0.0
    for t in range(1, n + 1):
        torch.nn.init.constant_(model.weight, float(t))
        average.update_parameters(model)
        beta = (1 - 1 / t) ** (gamma + 1)
        expected = beta * expected + (1 - beta) * t
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-9)
    assert average.module.weight.item() == pytest.approx(n * (gamma + 1) / (gamma + 2), abs=1.5)


@pytest.mark.parametrize("width", [-0.1, 0.3, 1.0])
def test_impossible_widths_are_refused(width):
    with pytest.raises(ValueError, match=r"0\.28"):
        power_exponent(width)


@pytest.mark.trap(48)
def test_an_average_offers_nothing_to_train():
    """DDP waits for the gradient of every parameter that asks for one."""
    average = PowerAverage(torch.nn.Linear(2, 2), 0.1)
    average.update_parameters(torch.nn.Linear(2, 2))
    assert not any(p.requires_grad for p in average.parameters())


def test_statistics_are_those_of_now():
    """Of a normalisation that counts what it has seen: they are not averaged, and not those of the beginning."""
    model = torch.nn.BatchNorm1d(2)
    average = PowerAverage(model, 0.1)
    model(torch.randn(8, 2))
    average.update_parameters(model)
    assert torch.equal(average.module.running_mean, model.running_mean)
    assert int(average.module.num_batches_tracked) == 1
