"""Weightings: the numbers of the papers, in every space, by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import xhat
from oracles import SCHEDULES, GaussianData, ScaledX0, inner_times
from xhat import FLOW, NOISE, X0, Denoiser, Denoising, Objective, Term, V, weightings
from xhat.diffusion.targets import SCALED_NOISE
from xhat.diffusion.times import LogitNormal
from xhat.diffusion.weightings import convert_weighting

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
    for weight, value in zip((x0, convert_weighting(x0, X0, NOISE), convert_weighting(x0, X0, V)), expected, strict=True):
        close(weight(logsnr_of(snr), VP), torch.tensor([value]).double(), rtol=1e-6)


@pytest.mark.parametrize("name", ["cosine_zero", "discrete_rescaled", "linear_logsnr_rescaled"])
@pytest.mark.trap(1)
@pytest.mark.trap(7)
def test_min_snr_at_zero_snr(name):
    """(x0, noise, v) = (0, 1, 0): the form min(SNR + 1, gamma)/(SNR + 1) would give 1 for v (diffusers#5238)."""
    schedule, x0 = SCHEDULES[name](), weightings.min_snr(5)
    zero = torch.tensor([-math.inf], dtype=torch.float64)
    for weight, value in ((x0, 0.0), (convert_weighting(x0, X0, NOISE), 1.0), (convert_weighting(x0, X0, V), 0.0)):
        assert weight(zero, schedule).item() == pytest.approx(value, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear_logsnr", "learned", "linear_beta"])
@pytest.mark.trap(1)
def test_weights_across_spaces_on_variance_preserving_schedules(name):
    """w_x0 = SNR w_noise = (SNR + 1) w_v."""
    schedule = SCHEDULES[name]()
    logsnr = schedule.logsnr(inner_times(schedule, 20)).detach()
    snr = logsnr.exp()
    in_noise = convert_weighting(weightings.truncated_snr, X0, NOISE)(logsnr, schedule).detach()
    in_v = convert_weighting(weightings.truncated_snr, X0, V)(logsnr, schedule).detach()
    close(snr * in_noise, snr.clamp(min=1), rtol=1e-7)
    close((snr + 1) * in_v, snr.clamp(min=1), rtol=1e-7)


@pytest.mark.trap(2)
def test_weights_across_spaces_on_rectified_flow():
    schedule = xhat.Flow()
    w = weightings.constant
    close(convert_weighting(w, FLOW, X0)(LOGSNR, schedule), (1 + SNR.sqrt()) ** 2, rtol=1e-8)
    alpha = torch.sigmoid(LOGSNR / 2)
    close(convert_weighting(w, SCALED_NOISE, X0)(LOGSNR, schedule), alpha**2, rtol=1e-8)
    close(weightings.clipped_velocity(0.05)(logsnr_of(1.0), schedule), torch.tensor([4.0]).double())
    clipped = weightings.clipped_velocity(0.05)(LOGSNR, schedule)
    close(clipped, (1 - alpha).clamp(min=0.05) ** -2, rtol=1e-8)  # = ‖Δu‖²/‖Δx0‖² until the clip


@pytest.mark.trap(3)
def test_debiased_is_one_weighting_in_both_spaces():
    close(weightings.debiased(LOGSNR, VP), SNR**-0.5)
    close(convert_weighting(weightings.debiased, NOISE, V)(LOGSNR, VP), SNR.sqrt() / (SNR + 1), rtol=1e-7)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.trap(4)
def test_min_snr_for_noise_is_at_most_one_and_falls_with_snr(gamma):
    w = convert_weighting(weightings.min_snr(gamma), X0, NOISE)(LOGSNR, VP)
    close(w, (gamma / SNR).clamp(max=1), rtol=1e-7)
    assert (w <= 1 + 1e-7).all()
    assert (w.diff() <= 1e-7).all()


@pytest.mark.trap(18)
def test_p2_multiplies_the_noise_loss():
    """k = 1, gamma = 1: 1/(1 + SNR) on the noise loss, sigma² if variance preserving; SNR times that on x0."""
    assert weightings.space_of(weightings.p2()) is NOISE
    close(weightings.p2()(LOGSNR, VP), torch.sigmoid(-LOGSNR))
    close(weightings.p2(0.5, 2.0)(LOGSNR, VP), (2 + SNR) ** -0.5)
    close(convert_weighting(weightings.p2(), NOISE, X0)(LOGSNR, VP), SNR / (1 + SNR), rtol=1e-7)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.trap(22)
def test_edm_reads_sigma_data_from_the_target_and_is_one_in_its_space(sigma_data):
    """lambda(sigma) = (sigma² + sd²)/(sigma sd)² on x0 is the constant weight on EDM's F, on any schedule."""
    target = xhat.targets.edm(sigma_data)
    weight = weightings.edm_weight(target)
    sigma2 = 1 / SNR
    close(weight(LOGSNR, VP), (sigma2 + sigma_data**2) / (sigma2 * sigma_data**2))
    for name in ("ve", "cosine", "flow"):
        schedule = SCHEDULES[name]()
        logsnr = schedule.logsnr(inner_times(schedule, 20))
        close(convert_weighting(weight, X0, target)(logsnr, schedule), torch.ones_like(logsnr), rtol=1e-7)
    with pytest.raises(ValueError, match="sigma_data"):
        weightings.edm_weight(V)


@pytest.mark.parametrize("space", [NOISE, V, FLOW, xhat.targets.SCORE, xhat.targets.edm(0.5)], ids=lambda x: x.name)
def test_moved_there_and_back_is_the_same(space):
    there_and_back = convert_weighting(convert_weighting(weightings.min_snr(5), X0, space), space, X0)
    close(there_and_back(LOGSNR, VP), SNR.clamp(max=5), rtol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "linear_beta"])
@pytest.mark.parametrize("target", [NOISE, V, FLOW, xhat.targets.edm(0.5)], ids=lambda x: x.name)
@pytest.mark.trap(1)
def test_a_moved_weight_makes_the_same_loss_and_gradient(name, target, rng):
    """weight in x0 space and its moved twin in another space: equal values and gradients on one draw."""
    schedule, x0 = SCHEDULES[name](), GaussianData().sample(16, rng)
    results = []
    for space, weight in ((X0, weightings.min_snr(5)), (target, convert_weighting(weightings.min_snr(5), X0, target))):
        denoiser = Denoiser(ScaledX0(schedule, V), schedule, V)
        loss = Objective(denoiser, {"d": Term(Denoising(space=space, weighting=weight))})(x0, step=1)["loss"]
        results.append(torch.stack([loss, *torch.autograd.grad(loss, denoiser.net.scale)]).detach())
    close(results[1], results[0], rtol=2e-5, atol=0)  # the times, and so the logsnr, are float32


@pytest.mark.parametrize("name", ["cosine", "linear_logsnr", "flow", "ve", "learned", "linear_beta"])
def test_elbo_and_sigmoid_are_relative_to_the_noise_level_density(name):
    """elbo = ½ |d logsnr/dt| on the noise loss, sigmoid(b) = elbo · sigmoid(b - logsnr)."""
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 20)
    logsnr = schedule.logsnr(t).detach()
    elbo = weightings.elbo(logsnr, schedule).detach()
    close(elbo, -0.5 * schedule.dlogsnr(t).detach(), rtol=1e-7)
    close(weightings.sigmoid(2.0)(logsnr, schedule).detach(), elbo * torch.sigmoid(2 - logsnr), rtol=1e-9)


def test_elbo_integral_does_not_depend_on_the_schedule():
    """∫ elbo f(logsnr) dt = ½ ∫ f dlogsnr between the same ends (VDM's invariance)."""
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(80))
    results = []
    for schedule in (xhat.schedules.LinearLogSNR(-4, 6), xhat.Cosine(-4, 6), xhat.schedules.Learned(-4, 6, 16).double()):
        logsnr = schedule.logsnr((x + 1) / 2).detach()
        value = weightings.elbo(logsnr, schedule).detach() * torch.exp(-(logsnr**2) / 8)
        results.append((value * w).sum().item() / 2)
    exact = 0.5 * math.sqrt(8 * math.pi) * (stats.norm.cdf(6 / 2) - stats.norm.cdf(-4 / 2))
    assert results == pytest.approx([exact] * 3, rel=1e-6)


def test_from_density_is_the_density_relative_to_uniform():
    """SD3: the uniform expectation of pi(t) loss, pi the logit-normal density (eq. 19)."""
    schedule = xhat.Flow(t_min=0.0)
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    normal = torch.from_numpy(stats.norm.pdf((torch.logit(t).numpy() - 0.3) / 0.8)) / 0.8
    weight = weightings.from_density(LogitNormal(0.3, 0.8))
    close(weight(schedule.logsnr(t), schedule), normal / (t * (1 - t)), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_density_vanishes_at_the_ends_it_never_draws(dtype):
    """Uniform float32 times do round to 1; the logit-normal density there is 0, not 0/0."""
    schedule = xhat.Flow(t_min=0.0)
    for times in (LogitNormal(), xhat.times.LogNormalSigma()):
        weight = weightings.from_density(times)
        close(weight(schedule.logsnr(torch.tensor([0.0, 1.0], dtype=dtype)), schedule), torch.zeros(2, dtype=dtype))


def test_edm_s_training_distribution_as_a_weighting_over_ve():
    """p(ln sigma) = N(-1.2, 1.2²) against VE's uniform ln sigma: the ratio of the two densities, truncated to the range."""
    schedule = xhat.schedules.VE()
    t = inner_times(schedule, 15)
    log_sigma = schedule.sigma(t).log().numpy()
    low, high = math.log(0.002), math.log(80.0)
    inside = stats.norm.cdf(high, -1.2, 1.2) - stats.norm.cdf(low, -1.2, 1.2)
    expected = stats.norm.pdf(log_sigma, -1.2, 1.2) * (high - low) / inside
    weight = weightings.from_density(xhat.times.LogNormalSigma())
    close(weight(schedule.logsnr(t), schedule), torch.from_numpy(expected), rtol=1e-7)


def test_product_multiplies_and_refuses_two_spaces():
    both = weightings.product(weightings.min_snr(5), weightings.from_density(LogitNormal()))
    schedule = xhat.Flow()
    alone = weightings.from_density(LogitNormal())(LOGSNR, schedule)
    close(both(LOGSNR, schedule), SNR.clamp(max=5) * alone)
    assert weightings.space_of(both) is X0
    with pytest.raises(ValueError, match="x0, noise"):
        weightings.product(weightings.min_snr(5), weightings.p2())


ALL_WEIGHTS = {
    "constant": weightings.constant,
    "min_snr": weightings.min_snr(5),
    "truncated": weightings.truncated_snr,
    "p2": weightings.p2(),
    "debiased": weightings.debiased,
    "edm": weightings.edm_weight(xhat.targets.edm(0.5)),
    "elbo": weightings.elbo,
    "sigmoid": weightings.sigmoid(1.0),
    "clipped_velocity": weightings.clipped_velocity(),
    "moved": convert_weighting(weightings.min_snr(5), X0, NOISE),
}


@pytest.mark.parametrize("name", ALL_WEIGHTS)
@pytest.mark.parametrize("schedule", ["cosine", "linear_beta", "flow"])
@pytest.mark.trap(9)
def test_weights_are_deterministic_positive_and_per_image(name, schedule):
    """w is a function of logsnr alone: the same twice, and entry b does not see the rest of the batch."""
    on = SCHEDULES[schedule]()
    own, logsnr = ALL_WEIGHTS[name], on.logsnr(inner_times(on, 12))
    state = torch.get_rng_state()
    once = own(logsnr, on)
    assert torch.equal(once, own(logsnr, on))
    assert torch.equal(state, torch.get_rng_state())
    close(torch.cat([own(x.reshape(1), on) for x in logsnr]), once, rtol=1e-12)
    assert (once > 0).all()


@pytest.mark.parametrize("times", [xhat.times.Adaptive, xhat.times.LossSecondMoment])
def test_a_density_that_learns_is_no_weighting(times):
    with pytest.raises(ValueError, match="follows the losses, and with it the objective would"):
        weightings.from_density(times())


def test_a_weighting_belongs_to_no_schedule():
    weight = weightings.from_density(LogitNormal())
    first, other = weight(LOGSNR, xhat.Flow()), weight(LOGSNR, xhat.Flow(shift=3))
    assert not torch.equal(first, other)
    assert torch.equal(first, weight(LOGSNR, xhat.Flow()))


@pytest.mark.parametrize(
    "make", [lambda w: Denoising(X0, w), lambda w: xhat.ImageLoss(xhat.penalties.total_variation, weighting=w)]
)
def test_what_cannot_be_called_with_logsnr_and_schedule_is_refused(make):
    with pytest.raises(ValueError, match=r"called with \(logsnr, schedule\).*write for example lambda logsnr, schedule"):
        make(lambda logsnr: logsnr)
    with pytest.raises(ValueError, match=r"min_snr is a class: give the weighting that it makes, min_snr\(\.\.\.\)"):
        make(weightings.min_snr)


@pytest.mark.parametrize(("space", "weight"), [(V, weightings.min_snr(5)), (X0, weightings.p2()), (X0, weightings.elbo)])
def test_a_weight_written_for_another_space_is_warned_about(space, weight):
    with pytest.warns(UserWarning, match="convert_weighting"):
        Denoising(space=space, weighting=weight)


def test_debiased_is_a_sigmoid_on_the_cosine_schedule():
    """docs/objectives.md: 1/sqrt(SNR) and sigmoid(-logsnr) times -d logsnr/dt differ by a factor there."""
    logsnr = torch.linspace(-6, 6, 25, dtype=torch.float64)
    ratio = xhat.weightings.debiased(logsnr, xhat.Cosine()) / xhat.weightings.sigmoid(0)(logsnr, xhat.Cosine())
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=1e-9)
