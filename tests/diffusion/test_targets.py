"""Targets: the one linear map, against the definitions in the papers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xhat
from oracles import DISCRETE, SCHEDULES, STEP_TARGETS, TARGETS, ZERO_TERMINAL, GaussianData, exact, inner_times, noisy
from xhat import FLOW, NOISE, X0, Denoiser, Discrete, V, decode
from xhat.diffusion.targets import POSTERIOR_MEAN, SCORE, STEP_NOISE, forward_step
from xhat.tensors import over_images

CASES = [(s, target) for s in SCHEDULES for target in TARGETS + (STEP_TARGETS if s in DISCRETE else [])]
IDS = [f"{s}-{target.name}" for s, target in CASES]


def close(a, b, rtol=1e-9, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("name", "target"), CASES, ids=IDS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=6)  # of each of 100 pairs, three times each
@pytest.mark.trap(20)
def test_decode_undoes_of(name, target, seed):
    """(x0, noise) -> y -> (x0, noise), and what comes back still makes z; a flipped sign anywhere fails."""
    schedule, own = SCHEDULES[name](), torch.Generator().manual_seed(seed)
    t = inner_times(schedule, 64)[torch.randperm(64, generator=own)[:3]]
    x0, noise = (torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=own) for _ in range(2))
    z = noisy(schedule, t, x0, noise)
    got_x0, got_noise = decode(target, schedule, z, t, target.of(schedule, t, x0, noise))
    # eps times the condition number of the 2 x 2 system, which is large only at the ends
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    scale = (1 / torch.minimum(alpha, sigma)).max().item() ** 2 * (100 if target in STEP_TARGETS else 1)
    close(got_x0, x0, rtol=0, atol=1e-13 * scale)
    close(got_noise, noise, rtol=0, atol=1e-13 * scale)
    close(over_images(alpha, z) * got_x0 + over_images(sigma, z) * got_noise, z, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize(("name", "target"), CASES, ids=IDS)
def test_gain_is_the_ratio_of_squared_errors(name, target, draw_of):
    """‖y - y_hat‖² = gain ‖x0 - x0_hat‖² for predictions that agree with the same z."""
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 40)
    z, x0 = draw_of(40)
    other = x0 + 0.5 + 0.1 * z
    alpha, sigma = over_images(schedule.alpha(t), z), over_images(schedule.sigma(t), z)
    y, y_hat = (target.of(schedule, t, x, (z - alpha * x) / sigma) for x in (x0, other))
    ratio = ((y - y_hat) ** 2).flatten(1).sum(1) / ((x0 - other) ** 2).flatten(1).sum(1)
    close(target.gain(schedule, t), ratio, rtol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "linear_beta"])
@pytest.mark.trap(1)
def test_gains_on_a_variance_preserving_schedule(name):
    """1, SNR, SNR + 1 for x0, noise, v; alpha² SNR.../.. for the others."""
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 30)
    snr, alpha, sigma = schedule.logsnr(t).exp(), schedule.alpha(t), schedule.sigma(t)
    close(X0.gain(schedule, t), torch.ones_like(t))
    close(NOISE.gain(schedule, t), snr)
    close(V.gain(schedule, t), snr + 1)
    close(FLOW.gain(schedule, t), (1 + snr.sqrt()) ** 2)
    close(xhat.targets.SCALED_NOISE.gain(schedule, t), alpha**2)
    close(SCORE.gain(schedule, t), alpha**2 / sigma**4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.trap(2)
def test_gains_on_rectified_flow(shift):
    """‖Δu‖² = (1 + √SNR)² ‖Δx0‖² = ‖Δx0‖²/sigma², not SNR + 1; ‖Δ(sigma noise)‖² = alpha² ‖Δx0‖²."""
    schedule, t = xhat.Flow(shift), torch.linspace(0.01, 0.99, 30, dtype=torch.float64)
    close(FLOW.gain(schedule, t), (1 + (schedule.logsnr(t) / 2).exp()) ** 2)
    close(FLOW.gain(schedule, t), schedule.sigma(t) ** -2)
    close(xhat.targets.SCALED_NOISE.gain(schedule, t), schedule.alpha(t) ** 2)


@pytest.mark.trap(20)
def test_signs_by_hand():
    """x0 = 2, noise = 3 at alpha = .6, sigma = .8: each target's number from its definition."""
    schedule = Discrete(torch.tensor([0.36, 0.09], dtype=torch.float64))
    t = torch.tensor([0.5], dtype=torch.float64)
    x0, noise = torch.full((1, 1, 1, 1), 2.0).double(), torch.full((1, 1, 1, 1), 3.0).double()
    expected = {X0: 2.0, NOISE: 3.0, V: 0.6 * 3 - 0.8 * 2, FLOW: 3.0 - 2.0, SCORE: -3 / 0.8, xhat.targets.SCALED_NOISE: 2.4}
    for target, value in expected.items():
        assert target.of(schedule, t, x0, noise).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.trap(20)
def test_flow_is_the_time_derivative_of_the_straight_path(draw_of):
    schedule, (x0, noise) = xhat.Flow(t_min=0.0), draw_of(1)
    t, h = torch.tensor([0.4], dtype=torch.float64), 1e-6
    slope = (noisy(schedule, t + h, x0, noise) - noisy(schedule, t - h, x0, noise)) / (2 * h)
    close(FLOW.of(schedule, t, x0, noise), slope, rtol=1e-8)


def test_v_is_the_angular_derivative_of_the_circular_path(draw_of):
    """V = dz/dphi with alpha = cos phi, sigma = sin phi."""
    schedule, (x0, noise) = xhat.Cosine(-math.inf, math.inf), draw_of(1)
    t, h = torch.tensor([0.4], dtype=torch.float64), 1e-6
    slope = (noisy(schedule, t + h, x0, noise) - noisy(schedule, t - h, x0, noise)) / (2 * h) / (math.pi / 2)
    close(V.of(schedule, t, x0, noise), slope, rtol=1e-8)


@pytest.mark.parametrize("name", ["cosine", "linear_beta"])
def test_edm_of_unit_data_is_minus_v(name, draw_of):
    schedule, (x0, noise) = SCHEDULES[name](), draw_of(10)
    t = inner_times(schedule, 10)
    close(xhat.targets.edm(1.0).of(schedule, t, x0, noise), -V.of(schedule, t, x0, noise))


def test_edm_is_the_papers_preconditioning(draw_of):
    """D(x) = c_skip x + c_out F(c_in x; c_noise), table 1 of Karras et al. 2022, on the VE schedule."""
    schedule, sd, (z, f) = xhat.schedules.VE(), 0.5, draw_of(12)
    t = inner_times(schedule, 12)
    sigma = over_images(schedule.sigma(t), z)
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / torch.sqrt(sigma**2 + sd**2)
    x0, _ = decode(xhat.targets.edm(sd), schedule, z, t, f)
    close(x0, c_skip * z + c_out * f)
    c_in = 1 / torch.sqrt(schedule.sigma(t) ** 2 + sd**2)
    close(xhat.targets.edm(sd).scale_input(schedule, t), c_in)
    close(xhat.time_inputs.log_sigma(schedule, t), schedule.sigma(t).log() / 4)


@pytest.mark.parametrize("name", ["ve", "cosine", "flow"])
@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_edm_gives_the_network_unit_variance_input_and_target(name, sd):
    """With independent x0 of variance sd²: var(scale z) = var(F) = 1 and they are uncorrelated."""
    schedule, target = SCHEDULES[name](), xhat.targets.edm(sd)
    t = inner_times(schedule, 25)
    (a, b), alpha, sigma = target.coefficients(schedule, t), schedule.alpha(t), schedule.sigma(t)
    close((a * sd) ** 2 + b**2, torch.ones_like(t))
    close(target.scale_input(schedule, t) ** 2 * ((alpha * sd) ** 2 + sigma**2), torch.ones_like(t))
    close(alpha * a * sd**2 + sigma * b, torch.zeros_like(t), atol=1e-12)


def test_forward_step_of_a_table_is_its_beta():
    betas = torch.linspace(1e-3, 0.2, 50, dtype=torch.float64)
    schedule = Discrete.from_betas(betas)
    t = torch.arange(1, 51, dtype=torch.float64) / 50
    ratio, beta = forward_step(schedule, t)
    close(beta, betas)
    close(ratio, (1 - betas).sqrt())


def test_step_noise_is_the_expected_increment_given_z_and_x0(rng):
    """Regression of the increment on (z, x0) over simulated chains; the rest has the variance of the docstring."""
    schedule, n, i = Discrete.linear_beta(20, 0.02, 0.3), 200_000, 7
    s, t = (torch.tensor([k / 20], dtype=torch.float64) for k in (i - 1, i))
    ratio, beta = forward_step(schedule, t)
    x0 = 0.7
    z_s = schedule.alpha(s) * x0 + schedule.sigma(s) * torch.randn(n, dtype=torch.float64, generator=rng)
    added = beta.sqrt() * torch.randn(n, dtype=torch.float64, generator=rng)
    noise = (ratio * z_s + added - schedule.alpha(t) * x0) / schedule.sigma(t)
    _, b = STEP_NOISE.coefficients(schedule, t)
    slope = (added * noise).mean() / (noise**2).mean()
    residual = added - b * noise
    rest = beta * schedule.sigma(s) ** 2 * ratio**2 / schedule.sigma(t) ** 2
    error = 5 * (rest / n).sqrt().item()  # five standard errors
    assert slope.item() == pytest.approx(b.item(), abs=error)
    assert residual.mean().item() == pytest.approx(0, abs=error)
    assert residual.var().item() == pytest.approx(rest.item(), rel=5 * math.sqrt(2 / n))


def test_posterior_mean_is_the_product_of_gaussians(draw_of):
    """Bayes in z_s: prior N(alpha_s x0, sigma_s²), likelihood N(z/ratio, beta/ratio²) — precision-weighted mean."""
    schedule, (x0, noise) = Discrete.linear_beta(20, 0.02, 0.3), draw_of(19)
    t = torch.arange(2, 21, dtype=torch.float64) / 20
    s, z = t - 1 / 20, noisy(schedule, t, x0, noise)
    beta = 1 - schedule.alpha(t) ** 2 / schedule.alpha(s) ** 2
    ratio = over_images((1 - beta).sqrt(), z)
    p_prior, p_like = over_images(schedule.sigma(s) ** -2, z), ratio**2 / over_images(beta, z)
    bayes = (p_prior * over_images(schedule.alpha(s), z) * x0 + p_like * z / ratio) / (p_prior + p_like)
    close(POSTERIOR_MEAN.of(schedule, t, x0, noise), bayes)


def test_posterior_mean_of_the_first_step_is_the_data(draw_of):
    schedule, (x0, noise) = Discrete.linear_beta(20, 0.02, 0.3), draw_of(2)
    close(POSTERIOR_MEAN.of(schedule, torch.full((2,), 1 / 20, dtype=torch.float64), x0, noise), x0)


@pytest.mark.parametrize("target", STEP_TARGETS, ids=lambda x: x.name)
def test_step_targets_are_refused_without_steps(target):
    with pytest.raises(ValueError, match="Discrete"):
        Denoiser(torch.nn.Identity(), xhat.Cosine(), target)


@pytest.mark.parametrize("name", ["cosine", "ve", "flow", "linear_beta"])
def test_score_is_the_gradient_of_the_exact_log_density(name, rng):
    schedule, data = SCHEDULES[name](), GaussianData()
    t = inner_times(schedule, 9)
    z = torch.randn(9, 1, 2, 2, dtype=torch.float64, generator=rng).requires_grad_()
    log_q = data.log_density(z, over_images(schedule.alpha(t), z), over_images(schedule.sigma(t), z))
    (score,) = torch.autograd.grad(log_q.sum(), z)
    close(exact(data, schedule)(z.detach(), t).in_space(SCORE), score, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ZERO_TERMINAL)
@pytest.mark.parametrize("target", [NOISE, SCORE, xhat.targets.SCALED_NOISE], ids=lambda x: x.name)
@pytest.mark.trap(7)
def test_noise_like_targets_are_refused_at_zero_terminal_snr(name, target):
    with pytest.raises(ValueError, match="V, FLOW or X0"):
        Denoiser(torch.nn.Identity(), SCHEDULES[name](), target)


@pytest.mark.parametrize("schedule", [xhat.Flow(t_min=0.0), xhat.Cosine(logsnr_max=math.inf)], ids=["flow", "cosine"])
@pytest.mark.trap(7)
def test_x0_is_refused_where_there_is_no_noise_to_read(schedule):
    with pytest.raises(ValueError, match="t_min"):
        Denoiser(torch.nn.Identity(), schedule, X0)


@pytest.mark.parametrize("name", ZERO_TERMINAL)
@pytest.mark.parametrize("target", [X0, V, FLOW, xhat.targets.edm(0.5)], ids=lambda x: x.name)
@pytest.mark.trap(7)
def test_zero_terminal_end_is_exact_and_differentiable(name, target, draw_of):
    """At alpha = 0 the value is the truth and every gradient is finite, in float32 as in training."""
    schedule, (x0, noise) = SCHEDULES[name](), (x.float() for x in draw_of(3))
    t = torch.ones(3)
    z = noisy(schedule, t, x0, noise)
    y = target.of(schedule, t, x0, noise).requires_grad_()
    got_x0, got_noise = decode(target, schedule, z, t, y)
    close(got_x0, x0, rtol=1e-5, atol=1e-5)
    close(got_noise, noise, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad((got_x0**2 + got_noise**2).sum(), y)
    assert torch.isfinite(grad).all()


@pytest.mark.trap(7)
def test_cosine_that_starts_at_alpha_bar_one_is_exact_at_its_start(draw_of):
    """sigma = 0 at t = 0: V and FLOW stay finite there; decode gives the data back."""
    schedule, (x0, noise) = xhat.Cosine(logsnr_max=math.inf), draw_of(2)
    t = torch.zeros(2, dtype=torch.float64)
    for target in (V, FLOW):
        Denoiser(torch.nn.Identity(), schedule, target)
        got = decode(target, schedule, noisy(schedule, t, x0, noise), t, target.of(schedule, t, x0, noise))
        close(got[0], x0)
        close(got[1], noise)


def test_edm_refuses_a_meaningless_sigma_data():
    with pytest.raises(ValueError, match="sigma_data"):
        xhat.targets.edm(0.0)
