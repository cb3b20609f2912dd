"""Samplers: convergence orders against exact solutions, closed-form statistics."""

import math

import pytest
import torch

import xhat
from oracles import DETERMINISTIC, EVERY, SCHEDULES, SHAPE, GaussianData, MixtureData, exact, noisy
from xhat import DDIM, DDPM, FLOW, X0, Denoiser, sample, uniform_times
from xhat.diffusion.gaussians import transition
from xhat.diffusion.variances import FORWARD, POSTERIOR
from xhat.sampling.samplers import DPMSolver2M, Euler, Heun

ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "2m": 2, "leapfrog": 2}


def close(a, b, rtol=1e-9, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def between(start, end, steps):
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


@pytest.fixture
def z(rng):
    return torch.randn(4, *SHAPE, dtype=torch.float64, generator=rng)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", ["cosine", "flow", "ve", "linear_logsnr"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_convergence_order_on_gaussian_data(name, schedule, z):
    """Halving the step divides the error by 2^order, against the ODE's exact solution."""
    schedule, data = SCHEDULES[schedule](), GaussianData()
    start, end = 0.85, 0.25
    z = z * data.spread(schedule.alpha(torch.tensor(start).double()), schedule.sigma(torch.tensor(start).double()))
    truth, denoiser = data.flow_map(schedule, z, start, end), exact(data, schedule)
    errors = [(sample(denoiser, DETERMINISTIC[name], z, between(start, end, n)) - truth).norm().item() for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.15)
    assert errors[-1] < 0.02 * truth.norm().item()


@pytest.fixture(scope="module")
def mixture_ode():
    """An exact denoiser, a start and the ODE's solution: Heun's, extrapolated to order three."""
    denoiser = exact(MixtureData(std=0.4), SCHEDULES["cosine"]())
    z = torch.randn(2, *SHAPE, dtype=torch.float64, generator=seeded())
    coarse, fine = (sample(denoiser, Heun(), z, between(0.9, 0.2, n)) for n in (96, 192))
    return denoiser, z, (4 * fine - coarse) / 3


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_convergence_order_on_a_mixture(name, mixture_ode):
    denoiser, z, truth = mixture_ode
    errors = [(sample(denoiser, DETERMINISTIC[name], z, between(0.9, 0.2, n)) - truth).norm().item() for n in (48, 96)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_order_over_the_whole_range_of_a_flow(name, order, z):
    """From pure noise into the data, both singular ends included: std z + mean is the exact end."""
    schedule, data = xhat.Flow(t_min=0.0), GaussianData()
    denoiser = exact(data, schedule, FLOW)
    errors = [
        (sample(denoiser, DETERMINISTIC[name], z, uniform_times(schedule, n)) - (data.mean + data.std * z)).norm().item()
        for n in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_perfect_x0_is_reproduced_by_any_number_of_steps(name, schedule, z):
    """With x0_hat = x0 every deterministic rule is exact: z_s = alpha_s x0 + sigma_s noise, with the noise of the start."""
    schedule = SCHEDULES[schedule]()
    x0, target = z[:1] / 2, xhat.targets.edm(0.5)
    perfect = _Perfect(x0, schedule, target)
    denoiser = Denoiser(perfect, schedule, target)
    for t in (torch.tensor([0.9, 0.5, 0.1]).double(), torch.tensor([1.0, 0.6, 0.58, 0.02, 0.01]).double()):
        one = torch.ones(4, dtype=torch.float64)
        got = sample(denoiser, EVERY[name], noisy(schedule, one * t[0], x0.expand_as(z), z), t)
        close(got, noisy(schedule, one * t[-1], x0.expand_as(z), z), rtol=1e-7, atol=1e-8)


class _Perfect(torch.nn.Module):
    def __init__(self, x0, schedule, target):
        super().__init__()
        self.x0, self.schedule, self.target = x0, schedule, target

    def forward(self, scaled, t):
        z = scaled / xhat.tensors.over_images(self.target.scale_input(self.schedule, t), scaled)
        alpha, sigma = (xhat.tensors.over_images(f(t), z) for f in (self.schedule.alpha, self.schedule.sigma))
        return self.target.of(self.schedule, t, self.x0.expand_as(z), (z - alpha * self.x0) / sigma)


@pytest.mark.parametrize("schedule", ["cosine", "flow_shift3", "ve", "linear_beta"])
def test_euler_is_ddim_on_every_schedule(schedule, z):
    schedule = SCHEDULES[schedule]()
    denoiser = exact(MixtureData(), schedule)
    times = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=torch.float64)
    close(sample(denoiser, Euler(), z, times), sample(denoiser, DDIM(), z, times), rtol=1e-8)


@pytest.mark.parametrize("steps", [10, 20])
def test_ddim_with_eta_one_is_ddpm(steps, z):
    """With the posterior variance, on the full grid and on a coarser one, given the same noise."""
    schedule = xhat.Discrete.linear_beta(20, 0.01, 0.3)
    denoiser = exact(MixtureData(), schedule, variance=POSTERIOR)
    times = uniform_times(schedule, steps)
    close(*(sample(denoiser, s, z, times, generator=seeded()) for s in (DDPM(), DDIM(eta=1.0))), rtol=1e-8)


@pytest.mark.parametrize("variance", [POSTERIOR, FORWARD], ids=["posterior", "forward"])
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(0.5), DDIM(1.0)], ids=repr)
def test_sample_statistics_of_the_chain_in_closed_form(sampler, variance, rng):
    """For Gaussian data every step is affine: mean and variance of the samples by recursion, from DDPM's betas alone."""
    betas, data, n = torch.linspace(0.02, 0.4, 10, dtype=torch.float64), GaussianData(), 6_000
    schedule, abar = xhat.Discrete.from_betas(betas), torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])
    mean, var = 0.0, 1.0
    for i in range(10, 0, -1):
        gain = abar[i].sqrt() * data.std**2 / (abar[i] * data.std**2 + 1 - abar[i])
        offset = data.mean - gain * abar[i].sqrt() * data.mean  # x0_hat = offset + gain z
        tilde = (1 - abar[i - 1]) / (1 - abar[i]) * betas[i - 1]
        if isinstance(sampler, DDPM):
            from_x0 = abar[i - 1].sqrt() * betas[i - 1] / (1 - abar[i])
            from_z = (1 - betas[i - 1]).sqrt() * (1 - abar[i - 1]) / (1 - abar[i])
            added = (tilde if variance is POSTERIOR else betas[i - 1]) if i > 1 else 0
        else:
            added = sampler.eta**2 * tilde
            direction = (1 - abar[i - 1] - added).sqrt() / (1 - abar[i]).sqrt()
            from_x0, from_z = abar[i - 1].sqrt() - direction * abar[i].sqrt(), direction
        mean = from_x0 * (offset + gain * mean) + from_z * mean
        var = (from_x0 * gain + from_z) ** 2 * var + added
    start = torch.randn(n, *SHAPE, dtype=torch.float64, generator=rng)
    x = sample(exact(data, schedule, variance=variance), sampler, start, uniform_times(schedule, 10), generator=seeded())
    assert x.mean().item() == pytest.approx(float(mean), abs=5 * math.sqrt(float(var) / x.numel()))
    assert x.var().item() == pytest.approx(float(var), rel=5 * math.sqrt(2 / x.numel()))


def test_ddpm_samples_the_mixture(rng):
    """Shares of the components are the data's; the spread around the means lies between those of the two fixed variances."""
    data, n, steps = MixtureData(), 1500, 40
    schedule = xhat.Discrete.cosine_beta(steps)
    start = torch.randn(n, *SHAPE, dtype=torch.float64, generator=rng)

    def shares_and_spread(x):
        distance = (x.unsqueeze(1) - data.means).flatten(2).square().sum(2)
        return torch.bincount(distance.argmin(1), minlength=3) / len(x), distance.min(1).values.mean().item()

    true_shares, true_spread = shares_and_spread(data.sample(50_000, rng))
    spreads = []
    for variance in (POSTERIOR, FORWARD):
        x = sample(exact(data, schedule, variance=variance), DDPM(), start, uniform_times(schedule, steps), generator=seeded(1))
        shares, spread = shares_and_spread(x)
        assert (shares - true_shares).abs().max().item() < 5 * 0.5 / n**0.5
        spreads.append(spread)
    assert 0.6 * true_spread < spreads[0] < true_spread < spreads[1] < 1.5 * true_spread


def test_ddpm_adds_no_noise_into_the_data(z):
    schedule = SCHEDULES["linear_beta"]()
    denoiser, times = exact(MixtureData(), schedule, variance=FORWARD), torch.tensor([0.01, 0.0], dtype=torch.float64)
    t, s = torch.full((4,), 0.01, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    close(sample(denoiser, DDPM(), z, times, generator=seeded()), denoiser.reverse(z, t, s).mean)


def test_2m_multistep_beats_first_order_at_equal_cost(z):
    schedule, data = SCHEDULES["cosine"](), GaussianData()
    denoiser, times = exact(data, schedule), between(0.9, 0.1, 20)
    truth = data.flow_map(schedule, z, 0.9, 0.1)
    first, second = ((sample(denoiser, s, z, times) - truth).norm() for s in (DDIM(), DPMSolver2M()))
    assert second < first / 5


def test_ddim_eta_variance_is_eta_squared_beta_tilde(z):
    """Two draws of one step differ by eta sqrt(beta-tilde) times the difference of their noises."""
    schedule = SCHEDULES["linear_beta"]()
    denoiser = exact(MixtureData(), schedule, X0)
    t, s = torch.full((4,), 0.6, dtype=torch.float64), torch.full((4,), 0.4, dtype=torch.float64)
    a, b = (DDIM(0.3).step(denoiser.given(None), z, t, s, noise, ())[0] for noise in (z, torch.zeros_like(z)))
    close(a - b, 0.3 * transition(schedule, t, s).posterior_variance[0].sqrt() * z)


@pytest.mark.parametrize("steps", [8, 10, 20, 50])
def test_2m_arrives_at_the_data(steps, rng):
    """All the way to t = 0 on narrow clusters: the far last jump in logsnr must not be extrapolated (Lu et al. 2022)."""
    data = MixtureData(std=0.02)
    denoiser = exact(data, xhat.Cosine())
    z = torch.randn(200, *SHAPE, dtype=torch.float64, generator=rng)
    distances = {}
    for name, sampler in (("2m", DPMSolver2M()), ("ddim", DDIM())):
        x = sample(denoiser, sampler, z, uniform_times(denoiser.schedule, steps))
        to_clusters = (x.unsqueeze(1) - data.means).flatten(2).square().mean(2).sqrt().amin(1)
        distances[name] = to_clusters.quantile(0.9).item()
    assert distances["2m"] < 1.5 * max(distances["ddim"], data.std)
