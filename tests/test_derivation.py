"""Every equation of docs/derivation.md: SymPy where it is algebra, exact quadrature where it is an expectation.

Where a tutorial prints another form, that form is evaluated beside the true one and must differ.
"""

import ast
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import sympy as sp
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch.distributions import MultivariateNormal, Normal

import xhat
from oracles import DISCRETE, SCHEDULES, GaussianData, ScaledX0, exact, inner_times, noisy
from xhat import Denoising, Hybrid, Objective, Term, VariationalBound, variational_bound
from xhat.bound.eight_bit import DiscretizedGaussian
from xhat.bound.terms import bits_per_dim, prior_term, rate_term, step_term
from xhat.diffusion.gaussians import Gaussian, transition
from xhat.tensors import over_images

ROOT = Path(__file__).resolve().parent.parent
LN2 = math.log(2)

# sqrt(alpha_t) and sqrt(abar_{t-1}); everything of one step is a rational function of these two
a, c = sp.symbols("root_alpha root_abar_before", positive=True)
x0, x_t, x_before, noise, noise_hat, v, spread = sp.symbols("x0 x_t x_before noise noise_hat v spread", positive=True)
ALPHA, BEFORE = a**2, c**2
BETA, BAR = 1 - ALPHA, ALPHA * BEFORE
MEAN_TILDE = c * BETA / (1 - BAR) * x0 + a * (1 - BEFORE) / (1 - BAR) * x_t
BETA_TILDE = (1 - BEFORE) / (1 - BAR) * BETA
NUMBERS = {a: 0.9, c: 0.7, x0: 0.5, x_t: 0.8, x_before: 0.3, noise: 1.3, noise_hat: 0.6, v: 0.2, spread: 0.4}


def equal(left, right):
    """Whether two expressions are the same for all values."""
    return sp.simplify(left - right) == 0


def differ(left, right):
    """Whether two expressions differ clearly at one ordinary point."""
    return abs(float((left - right).subs(NUMBERS))) > 1e-3


def close(left, right, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(left, right, rtol=rtol, atol=atol)


def pixels(*values):
    """One image of one pixel per value."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


def expectation(function, mean, variance, n=40):
    """E function(x) of x ~ N(mean, variance), exact for polynomials up to the order 2n - 1."""
    node, weight = (torch.from_numpy(array) for array in hermegauss(n))
    return float((function(mean + math.sqrt(variance) * node) * weight).sum() / weight.sum())


def signs(mean, std):
    """x0 and noise at one standard deviation each way: the mean over these four is exact for quadratic functions."""
    return pixels(mean - std, mean - std, mean + std, mean + std), pixels(-1.0, 1.0, -1.0, 1.0)


class Knows(torch.nn.Module):
    """A network that knows its targets, (B, ...)."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, z, t):
        return self.answer[: len(z)]


def predicted(denoiser, t, clean, unit):
    return denoiser(noisy(denoiser.schedule, t, clean, unit), t)


# --- a chain of three steps whose reverse steps are linear: every density of the bound is a known Gaussian -----------------

STEPS = [0.1, 0.3, 0.5]
BARS = [1.0, 0.9, 0.63, 0.315]


def forward_moments(clean):
    """Mean and covariance of q(x_1..x_T | x0) in closed form: Cov(x_s, x_t) = sqrt(abar_t/abar_s) (1 - abar_s), s <= t."""
    bars = times(*BARS[1:])
    low, high = torch.maximum(bars[:, None], bars), torch.minimum(bars[:, None], bars)
    return bars.sqrt() * clean, (high / low).sqrt() * (1 - low)


def reverse_moments(steps, last=(0.0, 1.0)):
    """Mean and covariance of p(x_0..x_T) for x_{t-1} = gain x_t + offset + sqrt(variance) noise, steps = [t = 1, 2, ..]."""
    count = len(steps)
    mean, root = torch.zeros(count + 1, dtype=torch.float64), torch.zeros(count + 1, count + 1, dtype=torch.float64)
    mean[count], root[count, count] = last[0], math.sqrt(last[1])
    for i in reversed(range(count)):
        gain, offset, variance = steps[i]
        mean[i], root[i] = gain * mean[i + 1] + offset, gain * root[i + 1]
        root[i, i] += math.sqrt(variance)
    return mean, root @ root.T


def bound_of(clean, mean, covariance):
    """E_q[log q(x_1:T | x0) - log p(x_0:T)] of two Gaussians, in closed form."""
    q_mean, q_covariance = forward_moments(clean)
    latents = torch.cat([times(clean), q_mean]) - mean
    precision = covariance.inverse()
    expected = latents @ precision @ latents + (precision[1:, 1:] * q_covariance).sum()
    log_p = -0.5 * (expected + torch.logdet(2 * math.pi * covariance))
    return float(-MultivariateNormal(q_mean, q_covariance).entropy() - log_p)


def gap_of(clean, mean, covariance):
    """KL(q(x_1:T | x0) ‖ p(x_1:T | x0)): the second by conditioning the joint Gaussian."""
    gain = covariance[1:, 0] / covariance[0, 0]
    posterior = MultivariateNormal(
        mean[1:] + gain * (clean - mean[0]), covariance[1:, 1:] - torch.outer(gain, covariance[0, 1:])
    )
    return float(torch.distributions.kl_divergence(MultivariateNormal(*forward_moments(clean)), posterior))


ANY_STEPS = [(0.8, 0.1, 0.05), (0.7, -0.2, 0.2), (0.6, 0.05, 0.4)]


def test_joint_densities():
    """(1), (2): products of the steps are the joint Gaussians; integrating the latents out leaves p(x0)."""
    path = [0.4, 0.1, -0.6, 0.9]
    q = sum(log_normal(path[i], math.sqrt(1 - beta) * path[i - 1], beta) for i, beta in enumerate(STEPS, start=1))
    assert q == pytest.approx(float(MultivariateNormal(*forward_moments(path[0])).log_prob(times(*path[1:]))), rel=1e-12)
    p = log_normal(path[3], 0, 1) + sum(
        log_normal(path[i], g * path[i + 1] + o, var) for i, (g, o, var) in enumerate(ANY_STEPS)
    )
    mean, covariance = reverse_moments(ANY_STEPS)
    assert p == pytest.approx(float(MultivariateNormal(mean, covariance).log_prob(times(*path))), rel=1e-12)
    grid = torch.linspace(-9, 9, 181, dtype=torch.float64)
    inner = torch.exp(log_normal(grid, 0, 1))  # p(x_3), then x_3 and x_2 are summed out
    for gain, offset, variance in reversed(ANY_STEPS[1:]):
        inner = torch.exp(log_normal(grid[:, None], gain * grid + offset, variance)) @ inner * 0.1
    gain, offset, variance = ANY_STEPS[0]
    density = float((torch.exp(log_normal(path[0], gain * grid + offset, variance)) * inner).sum() * 0.1)
    assert math.log(density) == pytest.approx(log_normal(path[0], float(mean[0]), float(covariance[0, 0])), rel=1e-6)


@pytest.mark.parametrize("clean", [-1.0, 0.2, 1.5])
def test_the_gap_of_the_bound_is_a_kl(clean):
    """(3), (4): bound - KL to the true posterior of the latents = -log p(x0); the KL is 0 for the exact reverse chain."""
    mean, covariance = reverse_moments(ANY_STEPS)
    nll, bound, gap = (
        -log_normal(clean, float(mean[0]), float(covariance[0, 0])),
        bound_of(clean, mean, covariance),
        gap_of(clean, mean, covariance),
    )
    assert bound - gap == pytest.approx(nll, rel=1e-10)
    assert gap > 0.05
    # Gaussian data N(0.3, 0.5²): q(x_{t-1} | x_t) without x0 is Gaussian, and with it as p the bound is tight
    true = []
    for i, beta in enumerate(STEPS, start=1):
        before = BARS[i - 1] * 0.25 + 1 - BARS[i - 1]
        gain = math.sqrt(1 - beta) * before / (BARS[i] * 0.25 + 1 - BARS[i])
        offset = 0.3 * (math.sqrt(BARS[i - 1]) - gain * math.sqrt(BARS[i]))
        true.append((gain, offset, before * (1 - gain * math.sqrt(1 - beta))))
    tight = reverse_moments(true, last=(0.3 * math.sqrt(BARS[-1]), BARS[-1] * 0.25 + 1 - BARS[-1]))
    assert bound_of(clean, *tight) == pytest.approx(-log_normal(clean, 0.3, 0.25), rel=1e-10)
    assert gap_of(clean, *tight) == pytest.approx(0, abs=1e-10)


def test_posterior_is_bayes_rule():
    """(5): q(x_t | x_{t-1}) = q(x_{t-1} | x_t, x0) q(x_t | x0) / q(x_{t-1} | x0): exponents and normalizations, all values."""
    forward, marginal = (x_t - a * x_before) ** 2 / BETA, (x_t - a * c * x0) ** 2 / (1 - BAR)
    before, back = (x_before - c * x0) ** 2 / (1 - BEFORE), (x_before - MEAN_TILDE) ** 2 / BETA_TILDE
    assert equal(forward, back + marginal - before)
    assert equal(BETA, BETA_TILDE * (1 - BAR) / (1 - BEFORE))


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_of_every_schedule_is_bayes_rule(name, draw_of):
    """(5) with the library's own densities, whatever alpha and sigma are."""
    schedule = SCHEDULES[name]()
    clean, unit = draw_of(3)
    t = inner_times(schedule, 5)[2:]
    s = (t - 1 / schedule.steps) if schedule.steps else 0.6 * t + 0.4 * max(schedule.t_min, 1e-3)
    z, z_s = noisy(schedule, t, clean, unit), noisy(schedule, s, clean, 0.7 * unit + 0.2)
    step = transition(schedule, t, s)

    def given(image, scale, variance):
        return Gaussian(over_images(scale, image) * image, over_images(variance.log(), image))

    left = given(z_s, step.alpha_ratio, step.forward_variance).log_prob(z)
    right = xhat.gaussians.posterior(schedule, clean, z, t, s).log_prob(z_s)
    right = right + given(clean, schedule.alpha(t), schedule.sigma(t) ** 2).log_prob(z)
    right = right - given(clean, schedule.alpha(s), schedule.sigma(s) ** 2).log_prob(z_s)
    close(left, right, rtol=1e-7, atol=1e-7)


def terms_at(path, means):
    """Of one path x0..x_T: log q - log p from the joint densities, and the logs in each of the bound's terms."""
    q_one = [log_normal(path[i], math.sqrt(1 - b) * path[i - 1], b) for i, b in enumerate(STEPS, start=1)]
    p_one = [log_normal(path[i], means(path[i + 1]), 0.3) for i in range(3)]
    last = log_normal(path[3], 0, 1)
    marginal = [None] + [log_normal(path[i], math.sqrt(BARS[i]) * path[0], 1 - BARS[i]) for i in (1, 2, 3)]
    back = [None, None] + [q_one[i - 1] + marginal[i - 1] - marginal[i] for i in (2, 3)]
    steps = sum(back[i] - p_one[i - 1] for i in (2, 3))
    return sum(q_one) - last - sum(p_one), (marginal[3] - last, steps, -p_one[0]), (q_one, p_one, last, marginal)


def test_the_sum_telescopes_from_the_second_step():
    """(6), (7): true on every path, not on average only; a sum from t = 1 counts the first step twice."""
    path = [0.4, 0.1, -0.6, 0.9]
    joint, (prior, steps, reconstruction), (q_one, p_one, last, marginal) = terms_at(path, math.tanh)
    assert prior + steps + reconstruction == pytest.approx(joint, rel=1e-12)
    printed = -last - sum(p - q for p, q in zip(p_one, q_one, strict=True)) - (p_one[0] - q_one[0])
    assert abs(printed - joint) > 0.1
    # the product of the marginals' ratios telescopes, their sum does not
    ratios = [math.exp(marginal[i - 1] - marginal[i]) for i in (2, 3)]
    assert math.prod(ratios) / math.exp(marginal[1]) == pytest.approx(math.exp(-marginal[3]), rel=1e-12)
    assert abs(sum(ratios) / math.exp(marginal[1]) - math.exp(-marginal[3])) > 0.1


def test_step_one_has_no_kl():
    """(7): q(x0 | x_1, x0) is a point, so that a KL at t = 1 is infinite for every reverse step."""
    schedule = xhat.Discrete.from_betas(times(*STEPS))
    q = xhat.gaussians.posterior(schedule, pixels(0.4), pixels(0.1), times(1 / 3), times(0.0))
    close(q.mean, pixels(0.4))
    assert float(xhat.gaussians.kl(q, Gaussian(pixels(0.4), pixels(-2.0)))) == math.inf


@pytest.mark.parametrize("clean", [-0.7, 0.4])
def test_three_terms_of_the_library_are_the_bound(clean):
    """(3), (8)-(10): L_T + sum of L_{t-1} + L_0 of xhat is E_q[log q - log p] of the joint Gaussians."""
    schedule = xhat.Discrete.from_betas(times(*STEPS))
    net = ScaledX0(schedule, xhat.NOISE, scale=0.7, shift=0.1)
    denoiser = xhat.Denoiser(net, schedule, xhat.NOISE, variance=xhat.variances.FORWARD)
    bound = variational_bound(denoiser, pixels(clean, clean), decoder=xhat.bound.DENSITY, noise=lambda i: pixels(-1.0, 1.0))
    steps = []
    for i, beta in enumerate(STEPS, start=1):
        from_x0 = math.sqrt(BARS[i - 1]) * beta / (1 - BARS[i])
        from_z = math.sqrt(1 - beta) * (1 - BARS[i - 1]) / (1 - BARS[i])
        steps.append((from_z + 0.7 * from_x0, 0.1 * from_x0, beta))
    assert float(bound.bits_per_dim.mean()) * LN2 == pytest.approx(bound_of(clean, *reverse_moments(steps)), rel=1e-9)


def test_forward_marginal():
    """(11), (12): two steps make one; 1 - abar_t = alpha_t (1 - abar_{t-1}) + beta_t. Without alpha_t it is too much."""
    assert equal(1 - BAR, ALPHA * (1 - BEFORE) + BETA)
    assert differ(1 - BAR, (1 - BEFORE) + BETA)
    assert equal((1 - BEFORE) + BETA - (1 - BAR), BETA * (1 - BEFORE))
    mean, covariance = forward_moments(0.8)
    close(mean, 0.8 * times(0.9, 0.63, 0.315).sqrt())
    root = torch.eye(3, dtype=torch.float64)  # x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) noise, unrolled
    for i, beta in enumerate(STEPS):
        root[i] = math.sqrt(beta) * root[i] + (math.sqrt(1 - beta) * root[i - 1] if i else 0)
    close(covariance, root @ root.T)


@pytest.mark.parametrize("name", SCHEDULES)
def test_forward_marginal_of_every_schedule(name):
    """(12): sigma_t² = (alpha_t/alpha_s)² sigma_s² + forward variance; noise grows with t, the image's share shrinks."""
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 6)
    step = transition(schedule, t[1:], t[:-1])
    close(schedule.sigma(t[1:]) ** 2, step.alpha_ratio**2 * schedule.sigma(t[:-1]) ** 2 + step.forward_variance)
    assert (schedule.sigma(t).diff() > 0).all()
    assert (schedule.alpha(t).diff() <= 0).all()
    if name != "ve":  # z is not the clean image plus noise: the image is scaled too
        assert schedule.alpha(t[-1:]).item() < 0.9


def test_posterior_is_a_product_in_x_before():
    """(13)-(15): q(x_t | x_{t-1}) as a function of x_{t-1} is N(x_t/sqrt(alpha_t), beta_t/alpha_t); then precisions add."""
    assert equal((x_t - a * x_before) ** 2 / BETA, (x_before - x_t / a) ** 2 / (BETA / ALPHA))
    precision = ALPHA / BETA + 1 / (1 - BEFORE)
    mean = (ALPHA / BETA * (x_t / a) + c * x0 / (1 - BEFORE)) / precision
    assert equal(1 / precision, BETA_TILDE)
    assert equal(mean, MEAN_TILDE)
    # the printed product: mean sqrt(alpha_t) x_{t-1} and variance beta_t, as if the density were one of x_t
    wrong = 1 / BETA + 1 / (1 - BEFORE)
    wrong_mean = (a * x_before * (1 - BEFORE) + c * x0 * BETA) / (BETA + 1 - BEFORE)
    assert differ(1 / wrong, BETA_TILDE)
    assert differ(wrong_mean, MEAN_TILDE)
    assert x_before in wrong_mean.free_symbols  # the mean of x_{t-1} would contain x_{t-1}
    assert x_before not in MEAN_TILDE.free_symbols


def test_posterior_needs_the_bars():
    """(15): alpha_{t-1} for abar_{t-1} in mu-tilde, beta-tilde or q(x_{t-1} | x0) agrees at t = 2 alone."""
    step = {a: sp.sqrt(0.5), c: sp.sqrt(0.63), x0: 0.8, x_t: 0.3}  # t = 3 of the chain of three steps: alpha_2 = 0.7
    plain = sp.Rational(7, 10)
    without = sp.sqrt(plain) * BETA / (1 - BAR) * x0 + a * (1 - plain) / (1 - BAR) * x_t
    schedule = xhat.Discrete.from_betas(times(*STEPS))
    q = xhat.gaussians.posterior(schedule, pixels(0.8), pixels(0.3), times(1.0), times(2 / 3))
    assert float(q.mean) == pytest.approx(float(MEAN_TILDE.subs(step)), rel=1e-12)
    assert float(q.log_variance.exp()) == pytest.approx(float(BETA_TILDE.subs(step)), rel=1e-12)
    assert abs(float(without.subs(step)) - float(q.mean)) > 1e-3
    assert abs(float((BETA * (1 - plain) / (1 - BAR)).subs(step)) - float(q.log_variance.exp())) > 1e-3
    q_mean, q_covariance = forward_moments(0.8)
    assert abs(math.sqrt(0.7) * 0.8 - float(q_mean[1])) > 1e-3
    assert abs((1 - 0.7) - float(q_covariance[1, 1])) > 1e-3


@pytest.mark.parametrize("name", DISCRETE)
def test_posterior_mean_by_the_noise(name, draw_of):
    """(16): mu-tilde = (x_t - beta_t/sqrt(1 - abar_t) noise)/sqrt(alpha_t); with 1/sqrt(abar_t) in front it is another."""
    root = sp.sqrt(1 - BAR)
    by_noise = MEAN_TILDE.subs(x0, (x_t - root * noise) / (a * c))
    assert equal(by_noise, (x_t - BETA / root * noise) / a)
    assert differ(by_noise, (x_t - BETA / root * noise) / sp.sqrt(BAR))
    schedule, (clean, unit) = SCHEDULES[name](), draw_of(3)
    t = inner_times(schedule, 5)[2:]
    z, step = noisy(schedule, t, clean, unit), transition(schedule, t, t - 1 / schedule.steps)
    own = z - over_images(step.forward_variance / schedule.sigma(t), z) * unit
    own = own / over_images(step.alpha_ratio, z)
    close(own, xhat.targets.POSTERIOR_MEAN.of(schedule, t, clean, unit))
    close(own, xhat.gaussians.posterior(schedule, clean, z, t, t - 1 / schedule.steps).mean)


def test_kl_of_gaussians():
    """(17): against quadrature of E_p[log p - log q], and kl. The form with two minus signs is not even 0 at p = q."""

    def cross_entropy(p, q):
        return -expectation(lambda x: log_normal(x, *q), *p)

    p, q = (0.5, 0.3), (-0.2, 1.7)
    ratio = p[1] / q[1]
    closed = 0.5 * (ratio - 1 - math.log(ratio) + (p[0] - q[0]) ** 2 / q[1])
    assert closed == pytest.approx(cross_entropy(p, q) - cross_entropy(p, p), rel=1e-12)
    own = xhat.gaussians.kl(*(Gaussian(pixels(mean), pixels(math.log(var))) for mean, var in (p, q)))
    assert float(own) == pytest.approx(closed, rel=1e-12)
    printed = -cross_entropy(p, q) - cross_entropy(p, p)  # ∫ p log q - (- ∫ p log p)
    assert printed < 0 < closed
    assert abs(printed + closed) > 0.1  # not merely the other sign
    assert abs(-2 * cross_entropy(p, p)) > 0.1  # the printed form at q = p, where a KL is 0


@pytest.mark.trap(5)
def test_weight_of_a_kl_term():
    """(18)-(20): the distance of the means as an error of x0 and of the noise; printed weights lack a square and a step."""
    from_x0 = c * BETA / (1 - BAR)
    snr, snr_before = BAR / (1 - BAR), BEFORE / (1 - BEFORE)
    assert equal(from_x0**2 / (2 * BETA_TILDE), (snr_before - snr) / 2)
    x0_error = (1 - BAR) / BAR  # (x0 - x0_hat)² = (1 - abar)/abar (noise - noise_hat)²
    weight = BETA**2 / (2 * v * ALPHA * (1 - BAR))
    assert equal(from_x0**2 * x0_error / (2 * v), weight)
    assert differ(weight, BETA / (2 * v * ALPHA * (1 - BEFORE)))
    assert differ(weight, BETA / (2 * v * ALPHA * (1 - BAR)))
    assert differ(weight, BETA**2 / (2 * v * ALPHA * (1 - BEFORE)))


@pytest.mark.trap(5)
@pytest.mark.parametrize("variance", [xhat.variances.POSTERIOR, xhat.variances.FORWARD], ids=["posterior", "forward"])
def test_weight_of_the_librarys_kl_term(variance):
    """(18)-(21): `step_term` is weight · error + constant, at every step of a schedule and for both variances."""
    schedule = xhat.Discrete.linear_beta(50, 1e-3, 0.2)
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.NOISE), schedule, xhat.NOISE, variance=variance)
    t = torch.arange(2, 51).double() / 50
    s, clean, unit = t - 1 / 50, torch.full((49, 1, 1, 1), 0.4).double(), torch.full((49, 1, 1, 1), -0.9).double()
    prediction = predicted(denoiser, t, clean, unit)
    value = step_term(denoiser, prediction, clean, unit, t, s)
    step = transition(schedule, t, s)
    beta, tilde, bar = step.forward_variance, step.posterior_variance, schedule.alpha(t) ** 2
    reverse = tilde if variance is xhat.variances.POSTERIOR else beta
    constant = 0.5 * (tilde / reverse - 1 - torch.log(tilde / reverse))
    weight = beta**2 / (2 * reverse * (1 - beta) * (1 - bar))
    close(value, weight * (unit - prediction.noise).flatten() ** 2 + constant)
    if variance is xhat.variances.POSTERIOR:
        drop = torch.exp(schedule.logsnr(s)) - torch.exp(schedule.logsnr(t))
        close(value, 0.5 * drop * (clean - prediction.x0).flatten() ** 2)


def test_best_reverse_variance():
    """(22): beta-tilde + from_x0² Var(x0 | x_t); beta-tilde for data in a point, beta for data N(0, 1)."""
    from_x0 = c * BETA / (1 - BAR)
    term = ((BETA_TILDE + from_x0**2 * spread) / v - 1 - sp.log(BETA_TILDE / v)) / 2
    best = BETA_TILDE + from_x0**2 * spread
    assert equal(sp.diff(term, v).subs(v, best), 0)
    assert float(sp.diff(term, v, 2).subs(v, best).subs(NUMBERS)) > 0
    assert equal(best.subs(spread, 0), BETA_TILDE)
    assert equal(best.subs(spread, 1 - BAR), BETA)


def test_fixed_variances_and_what_lies_between():
    """(21), (23): no constant for beta-tilde, 0.49 bits/dim for beta; LEARNED is geometric between. beta_{t-1} is neither."""
    schedule = xhat.Discrete.linear_beta()
    t = torch.arange(2, 1001).double() / 1000
    pixel = torch.zeros(999, 1, 1, 1, dtype=torch.float64)
    step = transition(schedule, t, t - 1 / 1000)
    tilde, beta = step.posterior_variance, step.forward_variance

    def constants(variance):
        """The KL terms of a network that knows x0."""
        denoiser = xhat.Denoiser(Knows(pixel), schedule, xhat.X0, variance=variance)
        return step_term(denoiser, predicted(denoiser, t, pixel, pixel), pixel, pixel, t, t - 1 / 1000) / LN2

    assert float(constants(xhat.variances.POSTERIOR).abs().max()) < 1e-12
    assert float(constants(xhat.variances.FORWARD).sum()) == pytest.approx(0.486, abs=5e-4)
    assert float(constants(xhat.variances.FORWARD)[0]) == pytest.approx(0.175, abs=5e-4)
    for value, wanted in ((-1.0, tilde), (1.0, beta), (0.0, (tilde * beta).sqrt())):
        close(xhat.variances.LEARNED.log_variance(schedule, pixel, t, t - 1 / 1000, pixel + value).flatten().exp(), wanted)
    previous = transition(schedule, t - 1 / 1000, (t - 2 / 1000).clamp(min=0)).forward_variance
    zero = pixel
    excess = xhat.gaussians.kl(
        Gaussian(zero, over_images(tilde.log(), zero)), Gaussian(zero, over_images(previous.log(), zero))
    )
    assert float(previous[0] / tilde[0]) == pytest.approx(1.83, abs=0.01)
    assert float(excess[0]) > 0.05


def test_l_simple_is_the_bound_without_its_weights():
    """(24), (25): L_{t-1} over its weight is the squared noise error at every step; weights fall 120-fold from the data on."""
    schedule = xhat.Discrete.linear_beta()
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.NOISE), schedule, xhat.NOISE)
    t = torch.arange(2, 1001).double() / 1000
    clean, unit = torch.full((999, 1, 1, 1), 0.4).double(), torch.full((999, 1, 1, 1), -0.9).double()
    prediction = predicted(denoiser, t, clean, unit)
    step = transition(schedule, t, t - 1 / 1000)
    weight = step.forward_variance**2 / (2 * step.posterior_variance * step.alpha_ratio**2 * schedule.sigma(t) ** 2)
    simple = Denoising()(denoiser, xhat.Draw(clean, t, unit, prediction.z, prediction, 0 * t + 1, None, 0, 0))
    close(step_term(denoiser, prediction, clean, unit, t, t - 1 / 1000) / weight, simple)
    assert float(weight[0]) == pytest.approx(0.60, abs=0.005)
    assert float(weight.min()) == pytest.approx(0.005, abs=5e-5)
    assert int(weight.argmin()) + 2 == 350
    assert float(weight[0] / weight.min()) == pytest.approx(120, abs=1)
    weight = weight * step.posterior_variance / step.forward_variance  # with v = beta
    assert float(weight[0]) == pytest.approx(0.27, abs=0.005)
    assert float(weight.min()) == pytest.approx(0.005, abs=5e-5)
    assert float(weight[0] / weight.min()) == pytest.approx(55, abs=0.5)
    continuous = xhat.schedules.LinearLogSNR()
    logsnr, rate = torch.linspace(-4, 13, 9, dtype=torch.float64), 18.3 / 2
    by_noise = xhat.Denoiser(ScaledX0(continuous, xhat.NOISE), continuous, xhat.NOISE)
    own, bound = (
        Objective(by_noise, {"only": Term(loss)}).effective_weighting(logsnr) for loss in (Denoising(), VariationalBound())
    )
    close(own, torch.full_like(logsnr, 1 / rate))
    close(bound, torch.full_like(logsnr, 1 / LN2))  # relative to the bound in nats


@pytest.mark.parametrize(("std", "below"), [(100.0, True), (0.01, False)])
def test_l_simple_is_no_bound(std, below):
    """(24): with the exact denoiser it is smaller than the entropy of wide data, and larger than that of narrow data."""
    schedule = xhat.Discrete.linear_beta(100, 1e-4, 0.2)
    denoiser = exact(GaussianData(0.0, std), schedule, xhat.X0, variance=xhat.variances.FORWARD)
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    clean, unit = signs(0.0, std)
    bound = variational_bound(denoiser, clean, decoder=xhat.bound.DENSITY, noise=lambda i: unit).bits_per_dim.mean() * LN2
    assert float(bound) > entropy
    at = torch.arange(1, 101).double().repeat_interleave(4) / 100
    hat = predicted(denoiser, at, clean.repeat(100, 1, 1, 1), unit.repeat(100, 1, 1, 1)).noise
    simple = float((hat - unit.repeat(100, 1, 1, 1)).square().mean())
    assert (simple < entropy) is below
    assert 0 < simple < 1


@pytest.mark.trap(13)
def test_prior_term_may_be_dropped():
    """(8), (26): no network in it; at most 2.9e-5 bits/dim for linear betas. A learned schedule does get a gradient from it."""
    schedule, clean = xhat.Discrete.linear_beta(), torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    bar = float(schedule.alpha(times(1.0))) ** 2
    assert bar == pytest.approx(4.036e-5, rel=1e-3)
    own = bits_per_dim(prior_term(schedule, clean), clean)
    # the closed form, as a KL by quadrature
    q = (math.sqrt(bar), 1 - bar)
    assert float(own[-1]) * LN2 == pytest.approx(expectation(lambda x: log_normal(x, *q) - log_normal(x, 0, 1), *q), rel=1e-6)
    close(own * LN2, 0.5 * (bar * clean.flatten() ** 2 - bar - math.log1p(-bar)), rtol=1e-6)
    assert float(own.max()) == pytest.approx(2.911e-5, rel=1e-3)
    assert float(bits_per_dim(prior_term(xhat.Discrete.cosine_beta(), clean), clean).max()) < 1e-8
    small = xhat.Discrete.from_betas(times(*STEPS))
    priors = []
    for scale in (0.0, 5.0):  # two models that generate different images
        denoiser = xhat.Denoiser(ScaledX0(small, xhat.NOISE, scale), small, xhat.NOISE)
        priors.append(variational_bound(denoiser, clean, decoder=xhat.bound.DENSITY).prior)
        assert not priors[-1].requires_grad
    close(priors[0], priors[1], rtol=0, atol=0)
    assert prior_term(xhat.schedules.Learned(features=8).double(), clean).requires_grad


@pytest.mark.trap(11)
@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.3), (0.999, 0.002), (-3.0, 0.05)])
def test_decoder_integrates_over_bins(mean, std):
    """(27): the 256 bins sum to 1; with x0 instead of x under the integral they are a density times a width, and do not."""
    levels = torch.arange(256, dtype=torch.float64).reshape(-1, 1, 1, 1) * 2 / 255 - 1
    decoder = DiscretizedGaussian(torch.full_like(levels, mean), torch.tensor(2 * math.log(std), dtype=torch.float64))
    chance = decoder.log_prob(levels).exp()
    assert float(chance.sum()) == pytest.approx(1, abs=1e-12)
    normal, edge = Normal(times(mean), times(std)), 1 - 1 / 255
    assert float(chance[0]) == pytest.approx(float(normal.cdf(times(-edge))), abs=1e-12)
    inside = torch.linspace(-1 / 255, 1 / 255, 20_001, dtype=torch.float64)
    nearest = min(254, max(1, round((mean + 1) * 127.5)))
    numeric = torch.trapezoid(normal.log_prob(levels.flatten()[nearest] + inside).exp(), inside)
    assert float(chance[nearest]) == pytest.approx(float(numeric), rel=1e-6)
    printed = float(normal.log_prob(levels.flatten()[1:-1]).exp().sum() * 2 / 255)  # and its two open bins are infinite
    if std == 0.002:
        assert abs(printed - 1) > 0.2
        assert float(normal.log_prob(levels.flatten()).exp().max() * 2 / 255) > 1.1  # a "probability"


def test_many_steps_are_an_integral():
    """(28)-(30): T-step terms are ½ expm1(logsnr_s - logsnr_t) · error; T times one tends to the rate, first order in 1/T."""
    schedule = xhat.schedules.LinearLogSNR()
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.NOISE), schedule, xhat.NOISE)
    clean, unit, t = pixels(0.4, -0.8), pixels(-0.9, 0.3), times(0.3, 0.8)
    prediction = predicted(denoiser, t, clean, unit)
    error = (unit - prediction.noise).flatten() ** 2
    rate = rate_term(denoiser, prediction, clean, unit, t)
    close(rate, 0.5 * 18.3 * error)
    misses = []
    for steps in (1000, 2000):
        s = t - 1 / steps
        own = step_term(denoiser, prediction, clean, unit, t, s)
        close(own, 0.5 * torch.expm1(schedule.logsnr(s) - schedule.logsnr(t)) * error)
        misses.append((steps * own / rate - 1).max().item())
    assert misses[0] == pytest.approx(18.3 / 2000, rel=0.01)
    assert misses[0] / misses[1] == pytest.approx(2, rel=0.01)
    u, h = sp.symbols("u h", positive=True)
    logsnr = 3 - 7 * u**2  # any falling function: ½ (SNR_s - SNR_t)/h -> ½ SNR (-d logsnr/dt)
    limit = sp.limit((sp.exp(logsnr.subs(u, u - h)) - sp.exp(logsnr)) / (2 * h), h, 0)
    assert equal(limit, sp.exp(logsnr) * -sp.diff(logsnr, u) / 2)


def test_continuous_bound_depends_on_the_ends_only():
    """(31): three schedules with the same ends, one integral; a closed form for Gaussian data. T steps cost more than it."""
    data, low, high = GaussianData(0.3, 0.5), -5.0, 9.0
    closed = 0.5 * math.log((1 + 0.25 * math.exp(high)) / (1 + 0.25 * math.exp(low)))
    clean, unit = signs(0.3, 0.5)
    count = 4000
    t = ((torch.arange(count).double() + 0.5) / count).repeat_interleave(4)
    for schedule in (xhat.schedules.LinearLogSNR(low, high), xhat.Cosine(low, high)):
        denoiser = exact(data, schedule, xhat.V)
        images, units = clean.repeat(count, 1, 1, 1), unit.repeat(count, 1, 1, 1)
        rate = rate_term(denoiser, predicted(denoiser, t, images, units), images, units, t)
        assert float(rate.mean()) == pytest.approx(closed, rel=1e-4)
        ends = schedule.logsnr(times(0.0, 1.0))
        close(ends, times(high, low))
    excess = []
    for steps in (100, 200):
        logsnr = torch.linspace(low, high, steps + 1, dtype=torch.float64)[:-1]
        error = 0.25 * logsnr.exp() / (1 + 0.25 * logsnr.exp())  # E (noise - noise_hat)²
        excess.append(float(0.5 * (torch.expm1(torch.full_like(logsnr, (high - low) / steps)) * error).sum()) - closed)
    assert excess[0] > excess[1] > 0
    assert excess[0] / excess[1] == pytest.approx(2, rel=0.1)


@pytest.mark.trap(13)
def test_bits_per_dim_and_the_offset_of_eight_bits():
    """(32), (33): nats over D log 2; bins of width 2/255 turn a density's bits into a probability's by + log2(127.5)."""
    assert float(bits_per_dim(times(12 * LN2), torch.zeros(1, 3, 2, 2))) == pytest.approx(1)
    levels = torch.arange(100, 150, dtype=torch.float64).reshape(-1, 1, 1, 1) * 2 / 255 - 1
    mean, log_variance = torch.zeros_like(levels), torch.tensor(2 * math.log(0.3), dtype=torch.float64)
    density = bits_per_dim(-Gaussian(mean, log_variance.expand_as(mean)).log_prob(levels), levels)
    chance = bits_per_dim(-DiscretizedGaussian(mean, log_variance).log_prob(levels), levels)
    close(chance, density + math.log2(127.5), rtol=0, atol=1e-4)
    assert math.log2(127.5) == pytest.approx(6.994, abs=5e-4)
    uniform = math.log2(512 / 255)  # bits of a uniform density over all 256 bins
    assert uniform + math.log2(127.5) == pytest.approx(8, abs=1e-12)


class TwoHeads(torch.nn.Module):
    """noise_hat = mean · z, and constant variance logits."""

    def __init__(self):
        super().__init__()
        self.mean, self.logit = (torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (0.3, -0.2))

    def forward(self, z, t):
        return torch.cat([self.mean * z, self.logit * torch.ones_like(z)], dim=1)


@pytest.mark.trap(10)
def test_hybrid_is_mse_plus_a_bound_that_trains_the_variance():
    """(34): xhat.Hybrid = L_simple + 0.001 L_vlb in bits/dim; the bound's gradient reaches the variance head alone."""
    schedule, net = xhat.Discrete.cosine_beta(40), TwoHeads()
    denoiser = xhat.Denoiser(net, schedule, xhat.NOISE, variance=xhat.variances.LEARNED)
    levels = torch.randint(0, 256, (40, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double() * 2 / 255 - 1
    losses = {"hybrid": Hybrid(), "simple": Denoising(), "bound": VariationalBound()}
    heads = [net.mean, net.logit]
    values, gradients = {}, {}
    for name, loss in losses.items():
        values[name] = Objective(denoiser, {"only": Term(loss)})(levels)["loss"]
        gradients[name] = torch.autograd.grad(values[name], heads, allow_unused=True)
    close(values["hybrid"], values["simple"] + 0.001 * values["bound"])
    close(gradients["hybrid"][0], gradients["simple"][0])
    close(gradients["hybrid"][1], 0.001 * gradients["bound"][1])
    assert float(gradients["simple"][1] or 0) == 0  # the simple loss says nothing about the variance
    assert abs(float(gradients["bound"][0])) > 1e-3  # the bound would have moved the mean, too


def test_mse_plus_kl_with_a_fixed_variance_is_one_weighted_mse():
    """(35): for POSTERIOR, and everything trained, Hybrid is the squared noise error weighted 1 + beta · T weight_t."""
    schedule = xhat.Discrete.linear_beta(50, 1e-3, 0.2)
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.NOISE), schedule, xhat.NOISE)
    t = torch.arange(2, 51).double() / 50
    clean, unit = torch.full((49, 1, 1, 1), 0.6).double(), torch.full((49, 1, 1, 1), -0.9).double()
    prediction = predicted(denoiser, t, clean, unit)
    draw = xhat.Draw(clean, t, unit, prediction.z, prediction, 0 * t + 1, None, 0, 0)
    own = Hybrid(0.3, learns=xhat.losses.variational.everything)(denoiser, draw) - 0.3 * bits_per_dim(
        prior_term(schedule, clean), clean
    )
    step = transition(schedule, t, t - 1 / 50)
    weight = step.forward_variance**2 / (2 * step.posterior_variance * step.alpha_ratio**2 * schedule.sigma(t) ** 2)
    close(own, (1 + 0.3 * 50 * weight / LN2) * (unit - prediction.noise).flatten() ** 2)
    # the reconstruction term is not that error: a network that knows the noise has none of it, and still pays for the decoder
    knows = xhat.Denoiser(Knows(unit), schedule, xhat.NOISE)
    bound = variational_bound(knows, clean[:1], noise=lambda i: unit[:1])
    assert float(bound.diffusion) == pytest.approx(0, abs=1e-9)
    assert float(bound.reconstruction) > 0.1


def test_kl_term_is_conditioned_on_x0():
    """(36): Gaussian data, exact reverse step: KL(q(x_{t-1} | x_t) ‖ p) is 0, while L_{t-1} keeps ½ log(v/beta-tilde)."""
    data, schedule = GaussianData(0.3, 0.5), xhat.Discrete.from_betas(times(*STEPS))
    t, s = times(*[2 / 3] * 4), times(*[1 / 3] * 4)
    step = transition(schedule, t[:1], s[:1])
    clean, unit = signs(0.3, 0.5)
    error = float(data.x0_error(schedule.alpha(t[:1]), schedule.sigma(t[:1])))
    tilde = float(step.posterior_variance)
    best = tilde + float(step.from_x0) ** 2 * error

    class Best:
        outputs = 1

        def log_variance(self, schedule, z, t, s, logits):
            return torch.full_like(z, math.log(best))

    denoiser = exact(data, schedule, xhat.X0, variance=Best())
    z = noisy(schedule, t, clean, unit)
    p = denoiser.step_back(denoiser(z, t), s)
    # q(x_{t-1} | x_t), by regression of two jointly Gaussian variables
    (alpha_t, alpha_s), (var_t, var_s) = (f(times(2 / 3, 1 / 3)) for f in (schedule.alpha, lambda u: schedule.sigma(u) ** 2))
    spread_t, spread_s = alpha_t**2 * 0.25 + var_t, alpha_s**2 * 0.25 + var_s
    gain = step.alpha_ratio * spread_s / spread_t
    true = Gaussian(alpha_s * 0.3 + gain * (z - alpha_t * 0.3), (spread_s - gain**2 * spread_t).log().reshape(1, 1, 1, 1))
    assert float(xhat.gaussians.kl(true, p).abs().max()) < 1e-12
    kept = step_term(denoiser, denoiser(z, t), clean, unit, t, s).mean()
    assert float(kept) == pytest.approx(0.5 * math.log(best / tilde), rel=1e-9)
    assert float(kept) > 0.1
    # a KL to the prior is another number: large also for the exact step back
    assert float(xhat.gaussians.kl(p, Gaussian(0 * z, 0 * z)).mean()) > float(kept) + 0.1


def two_points(z, alpha, sigma):
    """P(x0 = 1 | z) of data that are 1 with chance 0.2, else -1."""
    return torch.sigmoid(2 * alpha * z / sigma**2 + math.log(0.2 / 0.8))


def test_squared_error_has_a_floor():
    """(37): E (x0 - x0_hat)² = E Var(x0 | z) + E (E[x0 | z] - x0_hat)², by quadrature for data of two points."""
    alpha, sigma = 0.6, 0.8
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    joint = [chance * torch.exp(log_normal(z, alpha * x, sigma**2)) for chance, x in ((0.2, 1.0), (0.8, -1.0))]
    mean = 2 * two_points(z, alpha, sigma) - 1
    floor = float(torch.trapezoid(sum(joint) * (1 - mean**2), z))
    for guess in (mean, 0.4 * z, torch.tanh(z)):
        total = float(torch.trapezoid(joint[0] * (1 - guess) ** 2 + joint[1] * (-1 - guess) ** 2, z))
        extra = float(torch.trapezoid(sum(joint) * (mean - guess) ** 2, z))
        assert total == pytest.approx(floor + extra, rel=1e-9)
        assert total >= floor > 0.2
    # the best noise_hat is short of unit variance by just what is irreducible
    hat = (z - alpha * mean) / sigma
    power = float(torch.trapezoid(sum(joint) * hat**2, z))
    assert power == pytest.approx(1 - (alpha / sigma) ** 2 * floor, rel=1e-9)
    assert power < 0.9


def test_unsquared_norm_learns_a_median():
    """(37): at one z, the squared error is smallest at the mean of x0, the unsquared one at the likelier point."""
    chance = float(two_points(times(0.0), 0.6, 0.8))
    guess = torch.linspace(-1, 1, 2001, dtype=torch.float64)

    def best(error):
        return float(guess[(chance * error(1 - guess) + (1 - chance) * error(-1 - guess)).argmin()])

    assert best(torch.square) == pytest.approx(2 * chance - 1, abs=1e-3)
    assert best(torch.abs) == pytest.approx(-1)
    assert abs(2 * chance - 1 - -1) > 0.3


def test_scale_of_the_target_enters_squared():
    """(38): predicting sigma · noise instead of noise multiplies the loss by sigma²: 10 000-fold at sigma = 0.01, not 100."""
    schedule = xhat.schedules.LinearLogSNR()
    t = schedule.t_of(torch.log(times((1 - 1e-4) / 1e-4)))
    assert float(schedule.sigma(t)) == pytest.approx(0.01, rel=1e-9)
    ratio = float(xhat.NOISE.gain(schedule, t) / xhat.targets.SCALED_NOISE.gain(schedule, t))
    assert ratio == pytest.approx(1e4, rel=1e-9)


def test_noise_of_one_step_is_mostly_unpredictable(rng):
    """(39): z_t - sqrt(alpha_t) z_{t-1} given z_t and x0 has the mean STEP_NOISE, and a variance that no network removes."""
    schedule = xhat.Discrete.linear_beta(100, 1e-3, 0.2)
    t, n = times(0.5), 100_000
    step = transition(schedule, t, t - 0.01)
    clean, unit = pixels(0.4), pixels(-0.9)
    z = noisy(schedule, t, clean, unit)
    q = xhat.gaussians.posterior(schedule, clean, z, t, t - 0.01)
    before = q.sample(torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=rng))
    increment = (z - step.alpha_ratio * before).flatten()
    kept = float(step.alpha_ratio**2 * step.posterior_variance)
    mean = float(xhat.targets.STEP_NOISE.of(schedule, t, clean, unit))
    assert float(increment.mean()) == pytest.approx(mean, abs=5 * (kept / n) ** 0.5)  # five standard errors
    assert float(increment.var()) == pytest.approx(kept, rel=5 * (2 / n) ** 0.5)
    beta = float(step.forward_variance)
    assert kept == pytest.approx(beta - beta**2 / float(schedule.sigma(t)) ** 2, rel=1e-9)
    assert kept > 0.8 * beta


def functions_of(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_page_and_this_file_name_each_other():
    """Every test that the page names exists, every test here is on the page, equations count 1, 2, .. and each has a test."""
    page = (ROOT / "docs" / "derivation.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    for file, name in named:
        assert name in functions_of(ROOT / file), f"{file} has no {name}"
    own = {name for name in functions_of(Path(__file__)) if name.startswith("test_")}
    assert own <= {name for _, name in named}, f"not on the page: {own - {name for _, name in named}}"
    paragraphs = page.split("\n\n")
    for paragraph, after in pairwise(paragraphs):
        if paragraph.startswith("$$\n"):
            assert paragraph.endswith("\n$$"), paragraph
            assert after.startswith(("$$\n", "Checked by `tests/")), f"no test after\n{paragraph}"
    numbers = re.findall(r"\\tag\{(\d+)\}\n\$\$$", page, flags=re.MULTILINE)
    assert len(numbers) == page.count(r"\tag")
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    cited = re.findall(r'^    """\((\d+)\)', Path(__file__).read_text(), flags=re.MULTILINE)
    assert set(cited) <= set(numbers)
