"""The denoiser against data whose exact answer is known, and its invariance to the space it predicts in."""

import copy

import pytest
import torch

import xhat
from oracles import (
    DISCRETE,
    SCHEDULES,
    SHAPE,
    STEP_TARGETS,
    TARGETS,
    ZERO_TERMINAL,
    GaussianData,
    MixtureData,
    ScaledX0,
    exact,
    inner_times,
    noisy,
)
from xhat import FLOW, NOISE, X0, Denoiser, Denoising, Objective, Term, V
from xhat.diffusion.gaussians import transition
from xhat.diffusion.targets import SCORE
from xhat.diffusion.variances import FORWARD, POSTERIOR
from xhat.tensors import over_images

DATA = {"gaussian": GaussianData(), "mixture": MixtureData()}
ENDS_WELL = [X0, V, FLOW, xhat.targets.edm(0.5)]


def close(a, b, rtol=1e-8, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def targets_of(name):
    return (ENDS_WELL if name in ZERO_TERMINAL else TARGETS) + (STEP_TARGETS[1:] if name in DISCRETE else [])


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_the_oracle_obeys_tweedie(data, rng):
    """The oracle itself: E[x0 | z] = (z + sigma² grad log q(z))/alpha, with the gradient by autograd of the density."""
    schedule = SCHEDULES["cosine"]()
    t = inner_times(schedule, 9)
    z = torch.randn(9, *SHAPE, dtype=torch.float64, generator=rng).requires_grad_()
    alpha, sigma = over_images(schedule.alpha(t), z), over_images(schedule.sigma(t), z)
    (score,) = torch.autograd.grad(data.log_density(z, alpha, sigma).sum(), z)
    close(data.x0_hat(z, alpha, sigma), (z + sigma**2 * score) / alpha)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_the_oracle_is_the_best_regressor(data, rng):
    """Its error is uncorrelated with functions of z (the definition of a conditional mean), by Monte Carlo."""
    schedule, n = SCHEDULES["cosine"](), 40_000
    x0 = data.sample(n, rng)
    t = torch.full((n,), 0.4, dtype=torch.float64)
    z = noisy(schedule, t, x0, torch.randn(n, *SHAPE, dtype=torch.float64, generator=rng))
    error = x0 - data.x0_hat(z, over_images(schedule.alpha(t), z), over_images(schedule.sigma(t), z))
    for function in (torch.ones_like(z), z, z**2, z.flip(-1)):
        product = (error * function).mean((1, 2, 3))
        assert abs(product.mean()).item() < 5 * product.std().item() / n**0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_target_gives_the_same_x0_noise_and_score(name, rng):
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 6)
    z = torch.randn(6, *SHAPE, dtype=torch.float64, generator=rng)
    alpha, sigma = over_images(schedule.alpha(t), z), over_images(schedule.sigma(t), z)
    x0 = MixtureData().x0_hat(z, alpha, sigma)
    noise = (z - alpha * x0) / sigma
    for target in targets_of(name):
        p = exact(MixtureData(), schedule, target)(z, t)
        close(p.x0, x0, rtol=1e-6, atol=1e-7)
        close(p.noise, noise, rtol=1e-6, atol=1e-7)
        close(p.in_space(SCORE), -noise / sigma, rtol=1e-6, atol=1e-6)
        close(alpha * p.x0 + sigma * p.noise, z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "linear_beta"])
def test_views_of_a_prediction_are_consistent(name, draw_of):
    """`within` any space is that space's y of (x0, noise), and its own space is the raw output, untouched."""
    schedule, (z, _) = SCHEDULES[name](), draw_of(5)
    t = inner_times(schedule, 5)
    for target in targets_of(name):
        p = exact(GaussianData(), schedule, target)(z, t)
        assert p.in_space(target) is p.raw
        for space in TARGETS:
            close(p.in_space(space), space.of(schedule, t, p.x0, p.noise), rtol=1e-7, atol=1e-7)
        assert p.x0 is p.x0  # computed once


@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "linear_beta", "discrete_rescaled"])
@pytest.mark.parametrize("space", [X0, NOISE, V, FLOW], ids=lambda x: x.name)
@pytest.mark.trap(1)
def test_losses_and_gradients_do_not_depend_on_the_networks_space(name, space, rng):
    """One function x0_hat = scale z + shift through every target: equal losses and d loss/d scale, by the same draw."""
    x0 = GaussianData().sample(16, rng)
    results = []
    for target in targets_of(name):
        schedule = SCHEDULES[name]()
        denoiser = Denoiser(ScaledX0(schedule, target), schedule, target)
        loss = Objective(denoiser, {"denoise": Term(Denoising(space=space))})(x0, step=3)["loss"]
        (grad,) = torch.autograd.grad(loss, denoiser.net.scale)
        results.append((loss.detach(), grad))
    for loss, grad in results[1:]:
        # the times are float32: near the ends two spaces agree to the conditioning of the map between them
        close(loss, results[0][0], rtol=1e-5, atol=0)
        close(grad, results[0][1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "linear_beta"])
def test_reverse_with_the_exact_x0_is_the_exact_posterior_mean(name, rng):
    """E[z_s | z_t] for Gaussian data by conditioning a joint Gaussian of (z_s, z_t) — no formula of the library's."""
    schedule, data = SCHEDULES[name](), GaussianData()
    t = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    s = t - 0.1
    z = torch.randn(3, *SHAPE, dtype=torch.float64, generator=rng)
    alpha_t, alpha_s, sigma_s = (over_images(v, z) for v in (schedule.alpha(t), schedule.alpha(s), schedule.sigma(s)))
    ratio = alpha_t / alpha_s
    var_s = data.spread(alpha_s, sigma_s) ** 2
    var_t = data.spread(alpha_t, over_images(schedule.sigma(t), z)) ** 2
    mean = alpha_s * data.mean + ratio * var_s / var_t * (z - alpha_t * data.mean)
    close(exact(data, schedule).reverse(z, t, s).mean, mean, rtol=1e-7, atol=1e-8)


def test_one_forward_variance_step_from_exact_unit_data_is_exact(rng):
    """For N(m, I) data and FORWARD variance the reverse chain is the true one: means and variances after 5 steps."""
    schedule, data, n = xhat.Discrete.linear_beta(10, 0.05, 0.4), GaussianData(0.5, 1.0), 10_000
    denoiser = exact(data, schedule, variance=FORWARD)
    z = noisy(schedule, torch.ones(n, dtype=torch.float64), data.sample(n, rng), torch.randn(n, *SHAPE, generator=rng).double())
    for i in range(10, 5, -1):
        t, s = (torch.full((n,), k / 10, dtype=torch.float64) for k in (i, i - 1))
        z = denoiser.reverse(z, t, s).sample(torch.randn(n, *SHAPE, dtype=torch.float64, generator=rng))
    alpha, sigma = schedule.alpha(s[:1]), schedule.sigma(s[:1])
    spread = data.spread(alpha, sigma).item()
    assert z.mean().item() == pytest.approx(alpha.item() * data.mean, abs=5 * spread / z.numel() ** 0.5)
    assert z.std().item() == pytest.approx(spread, rel=5 / (2 * z.numel()) ** 0.5)


def test_prediction_log_variance_is_that_of_the_step_to_the_previous_grid_point():
    schedule = SCHEDULES["linear_beta"]()
    t = torch.arange(2, 101, dtype=torch.float64) / 100
    p = exact(GaussianData(), schedule, variance=POSTERIOR)(torch.zeros(99, *SHAPE, dtype=torch.float64), t)
    close(p.log_variance.flatten(), transition(schedule, t, t - 0.01).posterior_variance.log())


@pytest.mark.parametrize("outputs", [1, 4, 6])
def test_a_wrong_channel_count_says_what_was_expected(outputs):
    net = _Conv(torch.nn.Conv2d(3, outputs, 1))
    denoiser = Denoiser(net, SCHEDULES["cosine"](), V)
    with pytest.raises(ValueError, match=rf"\(2, {outputs}, 4, 4\).*expected 3 channels"):
        denoiser(torch.zeros(2, 3, 4, 4), torch.full((2,), 0.5))


class _Conv(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv, self.seen = conv, {}

    def forward(self, z, t, **cond):
        self.seen = {"z": z, "t": t, **cond}
        return self.conv(z)


def test_the_network_sees_the_scaled_z_its_own_time_and_the_condition(draw_of):
    schedule, (z, _) = xhat.schedules.VE(), draw_of(4)
    t, label = inner_times(schedule, 4), torch.arange(4)
    net = _Conv(torch.nn.Conv2d(1, 1, 1).double())
    Denoiser(net, schedule, xhat.targets.edm(0.5), time_input=xhat.time_inputs.log_sigma)(z, t, {"label": label})
    sigma = schedule.sigma(t)
    close(net.seen["z"], z / over_images(torch.sqrt(sigma**2 + 0.25), z))
    close(net.seen["t"], sigma.log() / 4)
    assert net.seen["label"] is label


def test_diffusers_index_counts_from_zero():
    schedule = xhat.Discrete.linear_beta(1000)
    t = schedule.time(torch.tensor([1, 500, 1000]))
    close(xhat.time_inputs.diffusers_index(schedule, t), torch.tensor([0.0, 499.0, 999.0]), rtol=1e-6, atol=1e-4)
    with pytest.raises(ValueError, match="discrete"):
        xhat.time_inputs.diffusers_index(SCHEDULES["cosine"](), torch.ones(1))


@pytest.mark.parametrize("name", ["cosine", "linear_beta", "flow"])
@pytest.mark.trap(6)
def test_a_bf16_network_leaves_the_diffusion_arithmetic_in_float32(name):
    """z, x0_hat and noise_hat stay float32, and the identity alpha x0 + sigma noise = z holds to float32."""
    schedule = SCHEDULES[name]()
    denoiser = Denoiser(_Conv(torch.nn.Conv2d(1, 1, 1)), schedule, V)
    t, z = inner_times(schedule, 8).float(), torch.randn(8, *SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        p = denoiser(z, t)
        assert {p.x0.dtype, p.noise.dtype, p.raw.dtype} == {torch.float32}
    close(over_images(schedule.alpha(t), z) * p.x0 + over_images(schedule.sigma(t), z) * p.noise, z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "linear_beta", "flow", "ve"])
def test_float32_images_stay_float32_whatever_the_dtype_of_t(name):
    """Times from `uniform_times` are float64: they must not turn images into float64."""
    schedule = SCHEDULES[name]()
    net = _Conv(torch.nn.Conv2d(1, 1, 1))
    denoiser = Denoiser(net, schedule, xhat.targets.edm(0.5))
    t, z = inner_times(schedule, 8), torch.randn(8, *SHAPE)
    p = denoiser(z, t)
    assert {net.seen["z"].dtype, net.seen["t"].dtype} == {torch.float32}
    assert {p.x0.dtype, p.noise.dtype, p.in_space(NOISE).dtype, denoiser.reverse(z, t, t - 0.001).mean.dtype} == {torch.float32}


def test_deepcopy_shares_nothing_and_keeps_the_function(draw_of):
    schedule, (z, _) = SCHEDULES["linear_beta"](), draw_of(3)
    denoiser = exact(MixtureData(), schedule)
    twin = copy.deepcopy(denoiser)
    assert twin.schedule is not schedule
    t = inner_times(schedule, 3)
    close(twin(z, t).x0, denoiser(z, t).x0, rtol=0, atol=0)
