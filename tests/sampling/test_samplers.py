"""Samplers: convergence orders against exact solutions, closed-form statistics, gradients through the chain."""

import math

import pytest
import torch

import xhat
from oracles import SCHEDULES, SHAPE, Constant, GaussianData, MixtureData, ScaledX0, exact, noisy
from xhat import (
    DDIM,
    DDPM,
    FLOW,
    FORWARD,
    POSTERIOR,
    X0,
    Denoiser,
    DPMSolver2M,
    Euler,
    Heun,
    V,
    karras_times,
    sample,
    uniform_times,
)
from xhat.diffusion.gaussians import transition

DETERMINISTIC = {"ddim": DDIM(), "euler": Euler(), "heun": Heun(), "2m": DPMSolver2M()}
STOCHASTIC = {"ddpm": DDPM(), "ddim_eta": DDIM(eta=0.7)}
EVERY = DETERMINISTIC | STOCHASTIC
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "2m": 2}


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
    x0, target = z[:1] / 2, xhat.edm(0.5)
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


def chain(name, schedule="linear_beta", target=V):
    on = SCHEDULES[schedule]()
    denoiser = Denoiser(ScaledX0(on, target, 0.4), on, target)
    return denoiser, EVERY[name], torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("schedule", ["linear_beta", "flow", "ve"])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.trap(27)
def test_gradient_through_the_entire_chain_by_finite_differences(name, schedule, z):
    """d/dscale and the directional derivative in z of a function of the sample, with grad_steps=None."""
    denoiser, sampler, times = chain(name, schedule)
    scale, direction = denoiser.net.scale, torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(z.shape)

    def value(start):
        return sample(denoiser, sampler, start, times, grad_steps=None, generator=seeded()).sin().sum()

    start = z.clone().requires_grad_()
    by_scale, by_start = torch.autograd.grad(value(start), (scale, start))
    h = 1e-6
    with torch.no_grad():
        along = (value(z + h * direction) - value(z - h * direction)) / (2 * h)
        scale += h
        up = value(z)
        scale -= 2 * h
        down = value(z)
        scale += h
    assert by_scale.item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-6)
    assert (by_start * direction).sum().item() == pytest.approx(along.item(), rel=1e-6, abs=1e-8)


def by_hand(denoiser, sampler, z, times, differentiated, generator):
    """The loop written out, detached before the last `differentiated` steps."""
    state, steps = sampler.init(z), len(times) - 1
    for i in range(steps):
        if i == steps - differentiated:
            z, state = z.detach(), tuple(x.detach() for x in state)
        t, s = times[i].expand(len(z)), times[i + 1].expand(len(z))
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype) if sampler.stochastic else z
        z, state = sampler.step(denoiser.given(None), z, t, s, noise, state)
    return z


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.trap(27)
def test_the_last_k_steps_are_differentiated(name, steps, z):
    denoiser, sampler, times = chain(name)
    expected = by_hand(denoiser, sampler, z, times, steps, seeded())
    got = sample(denoiser, sampler, z, times, grad_steps=steps, generator=seeded())
    close(got, expected, rtol=0, atol=0)
    gradients = [torch.autograd.grad(x.square().sum(), denoiser.net.scale)[0] for x in (got, expected)]
    close(gradients[0], gradients[1], rtol=1e-12)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.trap(27)
def test_checkpointing_changes_nothing(name, z):
    """Not even for stochastic rules: the recomputation sees the same noise."""
    denoiser, sampler, times = chain(name)
    results = []
    for checkpoint in (True, False):
        x = sample(denoiser, sampler, z, times, grad_steps=3, checkpoint=checkpoint, generator=seeded())
        results.append((x.detach(), *torch.autograd.grad(x.square().sum(), denoiser.net.scale)))
    close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_no_gradient_by_default_and_none_under_no_grad(name, z):
    denoiser, sampler, times = chain(name)
    assert not sample(denoiser, sampler, z, times, generator=seeded()).requires_grad
    with torch.no_grad():
        assert not sample(denoiser, sampler, z, times, grad_steps=None, generator=seeded()).requires_grad


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"times": torch.tensor([0.5])}, "two entries"),
        ({"times": torch.tensor([0.2, 0.5])}, "decrease"),
        ({"times": torch.tensor([0.5, 0.5, 0.2])}, "decrease"),
        ({"times": torch.tensor([0.5, float("nan"), 0.2])}, "decrease"),
        ({"grad_steps": 5}, "4 steps"),
        ({"grad_steps": -1}, "4 steps"),
        ({"sampler": DDPM()}, "generator"),
        ({"sampler": DDIM(eta=0.1)}, "generator"),
    ],
    ids=str,
)
def test_bad_calls_are_refused_with_the_way_out(kwargs, match, z):
    denoiser, sampler, times = chain("ddim")
    with pytest.raises(ValueError, match=match):
        sample(**{"denoiser": denoiser, "sampler": sampler, "z": z, "times": times, **kwargs})


def test_callback_sees_every_step_and_the_start_is_left_alone(z):
    denoiser, sampler, times = chain("2m")
    seen, before = [], z.clone()
    out = sample(denoiser, sampler, z, times, callback=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1][1], out)
    close(seen[0][1], sample(denoiser, sampler, z, times[:2]))
    assert torch.equal(z, before)


class _Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.embed = torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(1, 1)

    def forward(self, z, t):
        return self.conv(z) + self.embed(t.unsqueeze(1)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("schedule", ["cosine", "flow", "linear_beta", "ve"])
@pytest.mark.parametrize("name", EVERY)
def test_float32_networks_sample_float32_images_on_float64_times(name, schedule):
    schedule = SCHEDULES[schedule]()
    denoiser = Denoiser(_Conv(), schedule, xhat.edm(0.5))
    start = xhat.prior(denoiser, (2, *SHAPE), seeded())
    x = sample(denoiser, EVERY[name], start, uniform_times(schedule, 6), grad_steps=2, generator=seeded())
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("schedule", ["cosine", "ve", "flow", "linear_beta"])
def test_prior_has_the_scale_of_unit_data_at_the_schedules_end(schedule):
    schedule = SCHEDULES[schedule]()
    denoiser = Denoiser(Constant(torch.zeros(1, *SHAPE)), schedule, xhat.edm(0.5))
    x = xhat.prior(denoiser, (1000, *SHAPE), seeded())
    scale = math.sqrt(float(schedule.alpha(torch.ones(1))) ** 2 + float(schedule.sigma(torch.ones(1))) ** 2)
    close(x, scale * torch.randn(1000, *SHAPE, generator=seeded()), rtol=1e-6)


@pytest.mark.trap(31)
@pytest.mark.parametrize("sampler", [DDIM(), DDPM()], ids=["ddim", "ddpm"])
def test_a_table_that_keeps_signal_samples_unit_data_exactly(sampler):
    """alpha_bar_T = 0.36: N(0, 1) data end at N(0, 1) there, and start there in `prior`, `generate` and `FullChain` alike."""
    schedule = xhat.Discrete.linear_beta(100)
    denoiser = exact(GaussianData(mean=0.0, std=1.0), schedule, variance=xhat.FORWARD)
    x = sample(
        denoiser,
        sampler,
        xhat.prior(denoiser, (20_000, *SHAPE), seeded()).double(),
        uniform_times(schedule, 100),
        generator=seeded(3),
    )
    assert x.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * x.numel()) + 1e-3)
    x0 = torch.zeros(500, *SHAPE, dtype=torch.float64)
    draw = xhat.Objective(denoiser, {"d": xhat.Term(xhat.Denoising())}).draw(x0, step=0)
    chain = xhat.FullChain(DDIM(), 10, None)
    assert chain.start(denoiser, draw).std().item() == pytest.approx(1, abs=0.1)
    assert chain(denoiser, draw).std().item() == pytest.approx(1, abs=0.1)


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


@pytest.mark.parametrize("schedule", [xhat.VE(1e-3, 100.0), xhat.Cosine(), xhat.Flow(t_min=0.0)], ids=["ve", "cosine", "flow"])
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
    schedule, data = xhat.VE(), GaussianData()
    denoiser, times = exact(data, schedule, xhat.edm(0.5)), karras_times(schedule, 8)
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
    schedule, data = xhat.VE(), GaussianData()
    denoiser, errors = exact(data, schedule, xhat.edm(0.5)), []
    for n in (18, 36):
        times = karras_times(schedule, n)
        truth = data.flow_map(schedule, 80 * z, float(times[0]), float(times[-1]))
        errors.append((sample(denoiser, Heun(), 80 * z, times) - truth).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


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
