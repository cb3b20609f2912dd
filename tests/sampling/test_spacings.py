"""Sampling times: on the grid, at the levels of the paper, and where they end."""

import math

import pytest
import torch

import xhat
from oracles import EVERY, SCHEDULES, SHAPE, GaussianData, exact
from xhat import sample, uniform_times
from xhat.registry import SAMPLERS
from xhat.sampling.samplers import Heun
from xhat.sampling.spacings import karras_times


def close(a, b, rtol=1e-9, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture
def z(rng):
    return torch.randn(4, *SHAPE, dtype=torch.float64, generator=rng)


def test_uniform_times():
    close(uniform_times(xhat.Cosine(), 4), torch.tensor([1, 0.75, 0.5, 0.25, 0]).double())
    schedule = xhat.Discrete.linear_beta(1000)
    for steps in (1, 7, 300, 999, 1000):
        times = uniform_times(schedule, steps)
        assert len(times) == steps + 1
        assert (times.diff() < 0).all()
        assert (times[0], times[-1]) == (1, 0)
        close(times * 1000, (times * 1000).round(), atol=1e-9)
        assert (times - torch.linspace(1, 0, steps + 1).double()).abs().max() <= 0.5 / 1000 + 1e-6
    with pytest.raises(ValueError, match="1001"):
        uniform_times(schedule, 1001)
    with pytest.raises(ValueError, match="0 steps"):
        uniform_times(xhat.Cosine(), 0)


@pytest.mark.parametrize(
    "schedule", [xhat.schedules.VE(1e-3, 100.0), xhat.Cosine(), xhat.Flow(t_min=0.0)], ids=["ve", "cosine", "flow"]
)
def test_karras_times_are_the_papers_noise_levels(schedule):
    """sigma_i = (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho, then 0 (eq. 5), on any schedule."""
    n, rho = 12, 7
    times = karras_times(schedule, n)
    sigma = [(80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(n)]
    close(torch.exp(-schedule.logsnr(times[:-1]) / 2), torch.tensor(sigma, dtype=torch.float64), rtol=1e-7)
    assert schedule.sigma(times[-1:]).item() == 0


@pytest.mark.parametrize("name", ["ddim", "heun", "2m"])
def test_on_ve_the_last_karras_step_leaves_no_noise(name, z):
    """EDM's algorithm 1 ends at sigma = 0, with the denoiser's output: VE's own t = 0 still has sigma = 0.002."""
    schedule, data = xhat.schedules.VE(), GaussianData()
    denoiser, times = exact(data, schedule, xhat.targets.edm(0.5)), karras_times(schedule, 8)
    end = sample(denoiser, EVERY[name], 80 * z, times)
    before = sample(denoiser, EVERY[name], 80 * z, times[:-1])
    close(end, denoiser(before, times[-2].expand(len(z))).x0, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_karras_times_decrease_on_every_schedule(schedule, steps):
    """Also where the schedule's own range is narrower than 0.002..80: `sample` must accept them."""
    times = karras_times(SCHEDULES[schedule](), steps).detach()
    assert (times.diff() < 0).all()
    assert 0 <= times[-2] <= times[0] <= 1
    assert SCHEDULES[schedule]().sigma(times[-1:]).item() == 0


def test_heun_on_karras_times_is_of_second_order_over_edms_whole_range(z):
    """From sigma = 80 to 0.002 on EDM's mesh of 18 and 36 levels."""
    schedule, data = xhat.schedules.VE(), GaussianData()
    denoiser, errors = exact(data, schedule, xhat.targets.edm(0.5)), []
    for n in (18, 36):
        times = karras_times(schedule, n)
        truth = data.flow_map(schedule, 80 * z, float(times[0]), float(times[-1]))
        errors.append((sample(denoiser, Heun(), 80 * z, times) - truth).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_ends_in_numbers_on_karras_times(schedule, sampler, z):
    """The last step leaves no noise, where a ratio of two noise levels may be 0/0."""
    data, schedule = GaussianData(), SCHEDULES[schedule]()
    times, generator = karras_times(schedule, 5), torch.Generator().manual_seed(0)
    end = xhat.sample(exact(data, schedule), SAMPLERS[sampler](), z, times, generator=generator)
    assert bool(torch.isfinite(end).all())
