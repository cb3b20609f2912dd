"""Gaussians against torch.distributions, Bayes' rule, finite differences and high precision."""

import math

import mpmath
import pytest
import torch

import xhat
from oracles import SCHEDULES, inner_times, noisy
from xhat.diffusion.gaussians import Gaussian, kl, posterior, transition
from xhat.tensors import over_images

LEVELS = torch.arange(256, dtype=torch.float64) * (2 / 255) - 1


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def pixel(value, dtype=torch.float64):
    """One image of one pixel."""
    return torch.full((1, 1, 1, 1), value, dtype=dtype)


def gaussian(mean, log_variance, dtype=torch.float64):
    return Gaussian(pixel(mean, dtype), pixel(log_variance, dtype))


def test_log_prob_and_kl_equal_torch_distributions(draw_of):
    (m, lp), (n, lq) = draw_of(6), draw_of(6)
    own, other = Gaussian(m, lp), Gaussian(n, lq)
    p, q = (torch.distributions.Normal(g.mean, (g.log_variance / 2).exp()) for g in (own, other))
    close(own.log_prob(n), p.log_prob(n).flatten(1).sum(1))
    close(kl(own, other), torch.distributions.kl_divergence(p, q).flatten(1).sum(1), rtol=1e-8)


def test_kl_by_monte_carlo_has_this_direction(rng):
    """KL(p ‖ q) = E_p[log p - log q]: a swap of the arguments fails."""
    p, q, n = gaussian(0.5, -2.0), gaussian(-0.2, 0.3), 100_000
    x = Gaussian(p.mean.expand(n, 1, 1, 1), p.log_variance).sample(torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=rng))
    ratio = p.log_prob(x) - q.log_prob(x)
    assert abs(ratio.mean() - kl(p, q)).item() < 5 * (ratio.std() / math.sqrt(n)).item()
    assert abs(kl(q, p) - kl(p, q)).item() > 1


def test_kl_of_nearly_equal_variances_does_not_cancel():
    """½ d²/2 for log-variances that differ by d = 1e-5; the naive form in float32 gives 0 or noise."""
    value = kl(gaussian(0.0, 1.0, torch.float32), gaussian(0.0, 1.0 + 1e-4, torch.float32))
    d = torch.tensor(1.0) - torch.tensor(1.0 + 1e-4)
    assert value.item() == pytest.approx((d.double() ** 2 / 4).item(), rel=1e-2)
    close(kl(gaussian(0.0, 0.0), gaussian(0.0, 1e-6)), torch.tensor([1e-12 / 4 * (1 - 1e-6 / 3)]).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("log_variance", [-150.0, -100.0, -50.0, 50.0, 100.0, 150.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.trap(12)
def test_kl_at_extreme_equal_log_variances_is_zero_with_finite_gradients(log_variance, dtype):
    p, q = gaussian(0.3, log_variance, dtype), gaussian(0.3, log_variance, dtype)
    leaves = [x.requires_grad_() for x in (p.mean, p.log_variance, q.mean, q.log_variance)]
    value = kl(p, q)
    assert value.item() == 0
    for grad in torch.autograd.grad(value.sum(), leaves):
        assert torch.isfinite(grad).all()


@pytest.mark.trap(12)
def test_kl_gradients_by_finite_differences(draw_of):
    (m, lp), (n, lq) = draw_of(2), draw_of(2)
    inputs = [x.requires_grad_() for x in (m, lp, n, lq)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: kl(Gaussian(a, b), Gaussian(c, d)), inputs)


def test_per_image_values_do_not_mix_images(draw_of):
    """Image b's KL depends on image b alone, with width == batch size."""
    m = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    m[1] = 1.0
    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    close(kl(Gaussian(m, zero), Gaussian(torch.zeros_like(m), zero)), torch.tensor([0.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("name", SCHEDULES)
def test_transition_equals_the_textbook_formulas(name):
    """DDPM eq. 6-7 written with alphas and sigmas, over long and short steps."""
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 30)
    for s in (t / 2, t - 0.005, torch.full_like(t, 0.004)):
        s = s.clamp(min=0.002) if schedule.steps is None else (s * 100).floor().clamp(min=1) / 100
        pick = s < t
        tt, ss = t[pick], s[pick]
        alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(tt), schedule.alpha(ss), schedule.sigma(tt), schedule.sigma(ss)
        ratio = alpha_t / alpha_s
        beta = sigma_t**2 - ratio**2 * sigma_s**2
        step = transition(schedule, tt, ss)
        close(step.alpha_ratio, ratio)
        close(step.forward_variance, beta, rtol=1e-7, atol=1e-14)
        close(step.posterior_variance, beta * sigma_s**2 / sigma_t**2, rtol=1e-7, atol=1e-14)
        close(step.from_z, ratio * sigma_s**2 / sigma_t**2)
        close(step.from_x0, alpha_s * beta / sigma_t**2, rtol=1e-7, atol=1e-14)


def test_transition_of_close_times_keeps_its_digits():
    """s = t - 1e-9 on the cosine schedule against 50 digits: the naive difference of squares keeps about 7 digits only."""
    schedule, t, s = xhat.Cosine(-math.inf, math.inf), 0.4, 0.4 - 1e-9
    with mpmath.workdps(50):
        a_t, a_s, s_t, s_s = (f(mpmath.pi / 2 * mpmath.mpf(x)) for f in (mpmath.cos, mpmath.sin) for x in (t, s))
        beta = float(s_t**2 - (a_t / a_s) ** 2 * s_s**2)
    step = transition(schedule, *(torch.tensor([x], dtype=torch.float64) for x in (t, s)))
    assert step.forward_variance.item() == pytest.approx(beta, rel=1e-6)  # logsnr itself has 1e-16 · |logsnr|/1e-9


@pytest.mark.parametrize("name", ["cosine", "flow_shift3", "ve", "linear_beta"])
def test_posterior_is_bayes_rule(name, draw_of):
    """log q(z_s | z_t, x0) = log q(z_t | z_s) + log q(z_s | x0) - log q(z_t | x0) at arbitrary points."""
    schedule, (x0, noise) = SCHEDULES[name](), draw_of(8)
    t = inner_times(schedule, 8)
    s = t - 0.01 if schedule.steps else t / 2
    if schedule.steps:
        t, s, x0, noise = t[s > 0], s[s > 0], x0[s > 0], noise[s > 0]
    z, point = noisy(schedule, t, x0, noise), noisy(schedule, s, x0, noise.flip(0))

    def around(mean, variance):
        return Gaussian(mean, over_images(variance.log(), x0))

    step = transition(schedule, t, s)
    forward = around(over_images(step.alpha_ratio, z) * point, step.forward_variance).log_prob(z)
    prior = around(over_images(schedule.alpha(s), z) * x0, schedule.sigma(s) ** 2).log_prob(point)
    evidence = around(over_images(schedule.alpha(t), z) * x0, schedule.sigma(t) ** 2).log_prob(z)
    close(posterior(schedule, x0, z, t, s).log_prob(point), forward + prior - evidence, rtol=1e-7, atol=1e-7)


@pytest.mark.trap(5)
def test_the_bounds_weight_for_x0_is_half_the_difference_of_snr(draw_of):
    """KL(q(z_s|z_t,x0) ‖ q(z_s|z_t,x0_hat)) = ½ (SNR_s - SNR_t) ‖x0 - x0_hat‖²; .001279 at Stable Diffusion's index 500."""
    schedule = xhat.Discrete.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
    x0, x0_hat = draw_of(1)
    t, s = (torch.tensor([i / 1000], dtype=torch.float64) for i in (501, 500))  # diffusers counts from 0
    z = noisy(schedule, t, x0, torch.ones_like(x0))
    weight = kl(posterior(schedule, x0, z, t, s), posterior(schedule, x0_hat, z, t, s)) / (x0 - x0_hat).square().sum()
    close(weight, (schedule.logsnr(s).exp() - schedule.logsnr(t).exp()) / 2, rtol=1e-7)
    assert weight.item() == pytest.approx(0.001279, abs=5e-7)


@pytest.mark.parametrize("name", ["cosine_zero", "flow", "discrete_rescaled"])
@pytest.mark.trap(7)
def test_posterior_at_the_ends(name, draw_of):
    """From pure noise the posterior is q(z_s | x0); into the data (sigma = 0) it is a point at x0."""
    schedule, (x0, z) = SCHEDULES[name](), draw_of(2)
    one, half = torch.ones(2, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    back = posterior(schedule, x0, z, one, half)
    close(back.mean, over_images(schedule.alpha(half), x0) * x0)
    close(back.log_variance.flatten(), 2 * schedule.sigma(half).log())
    if name != "cosine_zero":
        into = posterior(schedule, x0, z, half, torch.zeros_like(half))
        close(into.mean, x0)
        assert (into.log_variance == -math.inf).all()
        close(into.sample(torch.ones_like(x0)), x0)
