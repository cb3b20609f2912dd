"""Intervals that hold what they promise, at few values and on heavy tails, by simulation."""

import math

import pytest
import torch
from scipy import stats

from xhat.bound.student import images_needed, limits, standard_error, student


@pytest.mark.parametrize("freedom", [1, 2, 4, 10, 11, 15, 30, 100, 10_000])
def test_students_quantiles(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)
    assert student(0) == math.inf


def covered(values, mean):
    """Share of the rows (trials, n) whose limits hold the mean, and whose ±2 standard errors do."""
    n = values.shape[1]
    inside, within = 0, 0
    for row in values:
        low, high = limits(float(row.mean()), standard_error(row), n)
        inside += low <= mean <= high
        within += abs(float(row.mean()) - mean) <= 2 * standard_error(row)
    return inside / len(values), within / len(values)


@pytest.mark.trap(45)
@pytest.mark.parametrize(("n", "of_two_errors"), [(2, 0.71), (5, 0.88)])
def test_few_values_get_wide_limits(n, of_two_errors):
    """±2 standard errors hold 70 % at n = 2 and 88 % at n = 5 of normal values; Student's limits 95 %."""
    values = torch.randn(4000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside, within = covered(values, 0.0)
    assert inside == pytest.approx(0.95, abs=0.015)
    assert within == pytest.approx(of_two_errors, abs=0.025)


TAIL, WANTED = 1.5, 0.3


def drawn(n, own):
    """Log-normal values of log-sd 1.5: rare ones make the mean."""
    return torch.exp(TAIL * torch.randn(n, generator=own, dtype=torch.float64))


def by_first_stage(own):
    """The rule of `estimate_bound`: others fix n."""
    return drawn(images_needed(drawn(256, own), WANTED), own)


def by_looking(own):
    """What is measured says when to stop."""
    values = drawn(64, own)
    while standard_error(values) > WANTED:
        values = torch.cat([values, drawn(64, own)])
    return values


def trials(rule, count=2000):
    """Share covered by the limits, and the bias of the means in their own standard deviations."""
    own, mean = torch.Generator().manual_seed(1), math.exp(TAIL**2 / 2)
    inside, means = 0, []
    for _ in range(count):
        values = rule(own)
        low, high = limits(float(values.mean()), standard_error(values), len(values))
        inside += low <= mean <= high
        means.append(float(values.mean()) - mean)
    means = torch.tensor(means)
    return inside / count, float(means.mean() / means.std())


@pytest.mark.trap(45)
def test_a_number_fixed_by_others_keeps_coverage_and_mean_on_heavy_tails():
    """As a number fixed beforehand; a rule that looks at its own error falls behind and is biased downwards."""
    fixed, none = trials(lambda own: drawn(480, own))
    by_others, bias = trials(by_first_stage)
    assert abs(none) < 0.1
    assert abs(bias) < 0.1
    assert by_others > fixed - 0.02
    looking, low = trials(by_looking)
    assert looking < fixed - 0.05
    assert low < -0.3
