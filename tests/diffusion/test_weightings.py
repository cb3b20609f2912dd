"""Weightings: the numbers of the papers, in every space, by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import xhat
from oracles import SCHEDULES, GaussianData, ScaledX0, inner_times
from xhat import FLOW, NOISE, SCALED_NOISE, X0, Denoiser, Denoising, LogitNormal, Objective, Term, V, moved, weightings
from xhat.diffusion.weightings import on_schedule

VP = xhat.Cosine()


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def logsnr_of(*snr):
    return torch.tensor(snr, dtype=torch.float64).log()


LOGSNR = torch.linspace(-9, 9, 37, dtype=torch.float64)
SNR = LOGSNR.exp()


@pytest.mark.parametrize(("snr", "expected"), [(100.0, (5, 0.05, 5 / 101)), (0.25, (0.25, 1.0, 0.2))])
@pytest.mark.trap(1)
def test_min_snr_in_all_spaces(snr, expected):
    x0 = weightings.min_snr(5)
    for weight, value in zip((x0, moved(x0, X0, NOISE), moved(x0, X0, V)), expected, strict=True):
        close(on_schedule(weight, VP)(logsnr_of(snr)), torch.tensor([value]).double(), rtol=1e-6)


@pytest.mark.parametrize("name", ["cosine_zero", "discrete_rescaled", "linear_logsnr_rescaled"])
@pytest.mark.trap(1)
@pytest.mark.trap(7)
def test_min_snr_at_zero_snr(name):
    """(x0, noise, v) = (0, 1, 0): the form min(SNR + 1, gamma)/(SNR + 1) would give 1 for v (diffusers#5238)."""
    schedule, x0 = SCHEDULES[name](), weightings.min_snr(5)
    zero = torch.tensor([-math.inf], dtype=torch.float64)
    for weight, value in ((x0, 0.0), (moved(x0, X0, NOISE), 1.0), (moved(x0, X0, V), 0.0)):
        assert on_schedule(weight, schedule)(zero).item() == pytest.approx(value, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear_logsnr", "learned", "linear_beta"])
@pytest.mark.trap(1)
def test_weights_across_spaces_on_variance_preserving_schedules(name):
    """w_x0 = SNR w_noise = (SNR + 1) w_v."""
    schedule = SCHEDULES[name]()
    logsnr = schedule.logsnr(inner_times(schedule, 20)).detach()
    snr = logsnr.exp()
    in_noise = on_schedule(moved(weightings.truncated_snr, X0, NOISE), schedule)(logsnr).detach()
    in_v = on_schedule(moved(weightings.truncated_snr, X0, V), schedule)(logsnr).detach()
    close(snr * in_noise, snr.clamp(min=1), rtol=1e-7)
    close((snr + 1) * in_v, snr.clamp(min=1), rtol=1e-7)


@pytest.mark.trap(2)
def test_weights_across_spaces_on_rectified_flow():
    schedule = xhat.Flow()
    w = weightings.constant
    close(on_schedule(moved(w, FLOW, X0), schedule)(LOGSNR), (1 + SNR.sqrt()) ** 2, rtol=1e-8)
    alpha = torch.sigmoid(LOGSNR / 2)
    close(on_schedule(moved(w, SCALED_NOISE, X0), schedule)(LOGSNR), alpha**2, rtol=1e-8)
    close(on_schedule(weightings.clipped_velocity(0.05), schedule)(logsnr_of(1.0)), torch.tensor([4.0]).double())
    clipped = on_schedule(weightings.clipped_velocity(0.05), schedule)(LOGSNR)
    close(clipped, (1 - alpha).clamp(min=0.05) ** -2, rtol=1e-8)  # = ‖Δu‖²/‖Δx0‖² until the clip


@pytest.mark.trap(3)
def test_debiased_is_one_weighting_in_both_spaces():
    close(weightings.debiased(LOGSNR), SNR**-0.5)
    close(on_schedule(moved(weightings.debiased, NOISE, V), VP)(LOGSNR), SNR.sqrt() / (SNR + 1), rtol=1e-7)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.trap(4)
def test_min_snr_for_noise_is_at_most_one_and_falls_with_snr(gamma):
    w = on_schedule(moved(weightings.min_snr(gamma), X0, NOISE), VP)(LOGSNR)
    close(w, (gamma / SNR).clamp(max=1), rtol=1e-7)
    assert (w <= 1 + 1e-7).all()
    assert (w.diff() <= 1e-7).all()


@pytest.mark.trap(18)
def test_p2_multiplies_the_noise_loss():
    """k = 1, gamma = 1: 1/(1 + SNR) on the noise loss, sigma² if variance preserving; SNR times that on x0."""
    assert weightings.space_of(weightings.p2()) is NOISE
    close(weightings.p2()(LOGSNR), torch.sigmoid(-LOGSNR))
    close(weightings.p2(0.5, 2.0)(LOGSNR), (2 + SNR) ** -0.5)
    close(on_schedule(moved(weightings.p2(), NOISE, X0), VP)(LOGSNR), SNR / (1 + SNR), rtol=1e-7)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.trap(22)
def test_edm_reads_sigma_data_from_the_target_and_is_one_in_its_space(sigma_data):
    """lambda(sigma) = (sigma² + sd²)/(sigma sd)² on x0 is the constant weight on EDM's F, on any schedule."""
    target = xhat.edm(sigma_data)
    weight = weightings.edm(target)
    sigma2 = 1 / SNR
    close(weight(LOGSNR), (sigma2 + sigma_data**2) / (sigma2 * sigma_data**2))
    for name in ("ve", "cosine", "flow"):
        schedule = SCHEDULES[name]()
        logsnr = schedule.logsnr(inner_times(schedule, 20))
        close(on_schedule(moved(weight, X0, target), schedule)(logsnr), torch.ones_like(logsnr), rtol=1e-7)
    with pytest.raises(ValueError, match="sigma_data"):
        weightings.edm(V)


@pytest.mark.parametrize("space", [NOISE, V, FLOW, xhat.SCORE, xhat.edm(0.5)], ids=lambda x: x.name)
def test_moved_there_and_back_is_the_same(space):
    there_and_back = moved(moved(weightings.min_snr(5), X0, space), space, X0)
    close(on_schedule(there_and_back, VP)(LOGSNR), SNR.clamp(max=5), rtol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "linear_beta"])
@pytest.mark.parametrize("target", [NOISE, V, FLOW, xhat.edm(0.5)], ids=lambda x: x.name)
@pytest.mark.trap(1)
def test_a_moved_weight_makes_the_same_loss_and_gradient(name, target, rng):
    """weight in x0 space and its moved twin in another space: equal values and gradients on one draw."""
    schedule, x0 = SCHEDULES[name](), GaussianData().sample(16, rng)
    results = []
    for space, weight in ((X0, weightings.min_snr(5)), (target, moved(weightings.min_snr(5), X0, target))):
        denoiser = Denoiser(ScaledX0(schedule, V), schedule, V)
        loss = Objective(denoiser, {"d": Term(Denoising(space=space, weight=weight))})(x0, step=1)["loss"]
        results.append(torch.stack([loss, *torch.autograd.grad(loss, denoiser.net.scale)]).detach())
    close(results[1], results[0], rtol=2e-5, atol=0)  # the times, and so the logsnr, are float32


@pytest.mark.parametrize("name", ["cosine", "linear_logsnr", "flow", "ve", "learned", "linear_beta"])
def test_elbo_and_sigmoid_are_relative_to_the_noise_level_density(name):
    """elbo = ½ |d logsnr/dt| on the noise loss, sigmoid(b) = elbo · sigmoid(b - logsnr)."""
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 20)
    logsnr = schedule.logsnr(t).detach()
    elbo = on_schedule(weightings.elbo, schedule)(logsnr).detach()
    close(elbo, -0.5 * schedule.dlogsnr(t).detach(), rtol=1e-7)
    close(on_schedule(weightings.sigmoid(2.0), schedule)(logsnr).detach(), elbo * torch.sigmoid(2 - logsnr), rtol=1e-9)
    close(weightings.sigmoid(2.0)(logsnr), torch.sigmoid(2 - logsnr))


def test_elbo_integral_does_not_depend_on_the_schedule():
    """∫ elbo f(logsnr) dt = ½ ∫ f dlogsnr between the same ends (VDM's invariance)."""
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(80))
    results = []
    for schedule in (xhat.LinearLogSNR(-4, 6), xhat.Cosine(-4, 6), xhat.Learned(-4, 6, 16).double()):
        logsnr = schedule.logsnr((x + 1) / 2).detach()
        value = on_schedule(weightings.elbo, schedule)(logsnr).detach() * torch.exp(-(logsnr**2) / 8)
        results.append((value * w).sum().item() / 2)
    exact = 0.5 * math.sqrt(8 * math.pi) * (stats.norm.cdf(6 / 2) - stats.norm.cdf(-4 / 2))
    assert results == pytest.approx([exact] * 3, rel=1e-6)


def test_from_density_is_the_density_relative_to_uniform():
    """SD3: the uniform expectation of pi(t) loss, pi the logit-normal density (eq. 19)."""
    schedule = xhat.Flow(t_min=0.0)
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    normal = torch.from_numpy(stats.norm.pdf((torch.logit(t).numpy() - 0.3) / 0.8)) / 0.8
    weight = on_schedule(weightings.from_density(LogitNormal(0.3, 0.8)), schedule)
    close(weight(schedule.logsnr(t)), normal / (t * (1 - t)), rtol=1e-8)
    with pytest.raises(ValueError, match="schedule"):
        weightings.from_density(LogitNormal())(LOGSNR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_density_vanishes_at_the_ends_it_never_draws(dtype):
    """Uniform float32 times do round to 1; the logit-normal density there is 0, not 0/0."""
    schedule = xhat.Flow(t_min=0.0)
    for times in (LogitNormal(), xhat.LogNormalSigma()):
        weight = on_schedule(weightings.from_density(times), schedule)
        close(weight(schedule.logsnr(torch.tensor([0.0, 1.0], dtype=dtype))), torch.zeros(2, dtype=dtype))


def test_edm_s_training_distribution_as_a_weighting_over_ve():
    """p(ln sigma) = N(-1.2, 1.2²) against VE's uniform ln sigma: the ratio of the two densities, truncated to the range."""
    schedule = xhat.VE()
    t = inner_times(schedule, 15)
    log_sigma = schedule.sigma(t).log().numpy()
    low, high = math.log(0.002), math.log(80.0)
    inside = stats.norm.cdf(high, -1.2, 1.2) - stats.norm.cdf(low, -1.2, 1.2)
    expected = stats.norm.pdf(log_sigma, -1.2, 1.2) * (high - low) / inside
    weight = on_schedule(weightings.from_density(xhat.LogNormalSigma()), schedule)
    close(weight(schedule.logsnr(t)), torch.from_numpy(expected), rtol=1e-7)


def test_product_multiplies_and_refuses_two_spaces():
    both = weightings.product(weightings.min_snr(5), weightings.from_density(LogitNormal()))
    schedule = xhat.Flow()
    alone = on_schedule(weightings.from_density(LogitNormal()), schedule)(LOGSNR)
    close(on_schedule(both, schedule)(LOGSNR), SNR.clamp(max=5) * alone)
    assert weightings.space_of(both) is X0
    with pytest.raises(ValueError, match="x0, noise"):
        weightings.product(weightings.min_snr(5), weightings.p2())


def test_learned_uncertainty_finds_the_log_of_the_mean_loss():
    """min_u E[L e^-u + u] is u = log E[L | logsnr] (EDM2, eq. 15): after fitting, every level contributes 1."""
    weight = weightings.learned_uncertainty(features=64).double()
    logsnr = torch.linspace(-6, 6, 64, dtype=torch.float64)
    loss = torch.exp(0.3 * logsnr.sin() - 1.5)
    optimizer = torch.optim.LBFGS(weight.parameters(), max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = (on_schedule(weight, VP)(logsnr) * loss + weight.offset(logsnr)).mean()
        value.backward()
        return value

    optimizer.step(closure)
    close(weight.offset(logsnr).detach(), loss.log(), rtol=0, atol=2e-2)
    close((on_schedule(weight, VP)(logsnr) * loss).detach(), torch.ones(64).double(), rtol=2e-2)


def test_learned_uncertainty_starts_as_its_base():
    weight = weightings.learned_uncertainty(weightings.min_snr(5))
    close(on_schedule(weight, VP)(LOGSNR).detach(), SNR.clamp(max=5), rtol=1e-6)
    assert weightings.space_of(weight) is X0


@pytest.mark.parametrize(
    "compose",
    [
        lambda u: weightings.product(weightings.from_density(LogitNormal()), u),
        lambda u: moved(u, NOISE, V),
    ],
    ids=["product", "moved"],
)
def test_learned_uncertainty_inside_another_weighting_is_refused_or_keeps_its_offset(compose):
    """Without the offset, e^-u would simply grow smaller for ever; without registration it would never be trained."""
    u = weightings.learned_uncertainty()
    torch.nn.init.constant_(u.gains, 0.3)
    schedule = xhat.Cosine()
    try:
        loss = Denoising(space=V, weight=compose(u))
    except (ValueError, TypeError):
        return
    assert any(p is u.gains for p in loss.parameters())
    perfect = Denoiser(ScaledX0(schedule, V, 0.0, 0.0), schedule, V)  # x0_hat = 0 = x0: only the offset remains
    values = Objective(perfect, {"d": Term(loss)})(torch.zeros(4, 1, 2, 2, dtype=torch.float64))
    assert values["loss"].abs().item() > 1e-3


ALL_WEIGHTS = {
    "constant": weightings.constant,
    "min_snr": weightings.min_snr(5),
    "truncated": weightings.truncated_snr,
    "p2": weightings.p2(),
    "debiased": weightings.debiased,
    "edm": weightings.edm(xhat.edm(0.5)),
    "elbo": weightings.elbo,
    "sigmoid": weightings.sigmoid(1.0),
    "clipped_velocity": weightings.clipped_velocity(),
    "moved": moved(weightings.min_snr(5), X0, NOISE),
    "uncertainty": weightings.learned_uncertainty(),
}


@pytest.mark.parametrize("name", ALL_WEIGHTS)
@pytest.mark.parametrize("schedule", ["cosine", "linear_beta", "flow"])
@pytest.mark.trap(9)
def test_weights_are_deterministic_positive_and_per_image(name, schedule):
    """w is a function of logsnr alone: the same twice, and entry b does not see the rest of the batch."""
    on = SCHEDULES[schedule]()
    weight, logsnr = on_schedule(ALL_WEIGHTS[name], on), on.logsnr(inner_times(on, 12))
    state = torch.get_rng_state()
    once = weight(logsnr)
    assert torch.equal(once, weight(logsnr))
    assert torch.equal(state, torch.get_rng_state())
    close(torch.cat([weight(x.reshape(1)) for x in logsnr]), once, rtol=1e-12)
    assert (once > 0).all()


def test_from_density_and_a_sampler_may_not_serve_two_schedules():
    weight = weightings.from_density(LogitNormal())
    on_schedule(weight, xhat.Flow())(LOGSNR)
    with pytest.raises(ValueError, match="another schedule"):
        on_schedule(weight, xhat.Flow())(LOGSNR)


@pytest.mark.parametrize(("space", "weight"), [(V, weightings.min_snr(5)), (X0, weightings.p2()), (X0, weightings.elbo)])
def test_a_weight_written_for_another_space_is_warned_about(space, weight):
    with pytest.warns(UserWarning, match="moved"):
        Denoising(space=space, weight=weight)
