"""Times that follow what noisy images tell of clean ones, and times that are not corrected for: against closed forms."""

import warnings

import numpy as np
import pytest
import torch

import xhat
from oracles import SCHEDULES, GaussianData, exact
from xhat.analysis.profile import levels, profile
from xhat.analysis.remarks import named_remarks
from xhat.diffusion.times import Adaptive, InfoNoise, LogitNormal, LogNormalSigma, Shifted, Stratified, Uncorrected
from xhat.diffusion.times.information import NOISIEST

UNIFORM, BINS, FINEST = 0.05, 32, 6.0


def objective(schedule, times, loss=None):
    denoiser = exact(GaussianData(), schedule, xhat.V)
    return xhat.Objective(denoiser, {"d": xhat.Term(loss or xhat.Denoising(xhat.V))}, times)


def learned(schedule, steps=300, batch=256):
    own = objective(schedule, InfoNoise(0.98, UNIFORM, BINS, FINEST))
    for step in range(steps):
        own(GaussianData().sample(batch, torch.Generator().manual_seed(step)), step=step)
    return own.times


def information(schedule, cells):
    """½ ∫ E‖noise - E[noise | z]‖² d logsnr over each cell: of variance s² it is log(1 + s² SNR)/2."""
    edges = torch.linspace(float(schedule.t_min) if schedule.steps is None else 0.0, 1.0, cells + 1, dtype=torch.float64)
    snr = schedule.logsnr(edges).detach().clamp(NOISIEST, FINEST).exp()
    total = torch.log1p(GaussianData().std ** 2 * snr) / 2
    return (total[:-1] - total[1:]).numpy()


@pytest.mark.parametrize("name", ["cosine", "flow", "linear_beta", "cosine_beta", "ve", "discrete_rescaled", "cosine_zero"])
def test_times_follow_the_information_that_is_gained(name):
    """Mutual information of a Gaussian and its noisy form in closed form; the exact denoiser's errors are averaged."""
    schedule = SCHEDULES[name]()
    times = learned(schedule)
    cells = schedule.steps or BINS
    found = times._cells(schedule).numpy()
    wanted = information(schedule, cells)
    wanted = (1 - UNIFORM) * wanted / wanted.sum() + UNIFORM / cells
    assert np.abs(found - wanted).sum() < 0.03
    assert np.abs(wanted - 1 / cells).sum() > 0.3, "uniform times would not have passed"


def test_levels_finer_than_the_finest_have_the_uniform_share():
    schedule = SCHEDULES["cosine"]()
    found = learned(schedule, steps=40)._cells(schedule)
    edges = torch.linspace(schedule.t_min, 1, BINS + 1, dtype=torch.float64)
    fine = schedule.logsnr(edges[1:]) > FINEST
    assert fine.any()
    torch.testing.assert_close(found[fine], torch.full_like(found[fine], UNIFORM / BINS), rtol=1e-12, atol=0)


def test_whatever_the_loss_it_is_the_error_of_the_noise_that_is_followed():
    """Another weighting and another space: the same times, to the last bit."""
    schedule = SCHEDULES["cosine"]()
    found = []
    for loss in (xhat.Denoising(xhat.V), xhat.Denoising(xhat.X0, xhat.weightings.min_snr(5))):
        own = objective(schedule, InfoNoise(bins=8), loss)
        own.times.update(schedule, torch.linspace(0.01, 0.99, 64), torch.ones(64))
        own(GaussianData().sample(64, torch.Generator().manual_seed(0)), step=0)
        found.append(own.times.average.clone())
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cosine", "linear_beta"])
def test_uncorrected_times_are_a_weighting_by_their_density(name):
    """The same loss in expectation, and the same effective weighting, as from_density of the same times, corrected."""
    schedule, times = SCHEDULES[name](), LogitNormal(0.3, 0.8)
    weighed = xhat.Denoising(xhat.V, xhat.weightings.from_density(times))
    plain, said = objective(schedule, Uncorrected(times)), objective(schedule, Stratified(), weighed)
    x0 = GaussianData().sample(20_000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = [own.eval()(x0, step=0)["loss"].item() for own in (plain, said)]
    assert values[0] == pytest.approx(values[1], rel=0.01)
    logsnr = torch.linspace(-6, 6, 25, dtype=torch.float64)
    found, wanted = (own.effective_weighting(logsnr) for own in (plain, said))
    torch.testing.assert_close(found / found.sum(), wanted / wanted.sum(), rtol=1e-5, atol=1e-9)
    assert (plain.draw(x0[:8], step=0).importance == 1).all()


def test_uncorrected_times_learn_as_they_would():
    schedule = SCHEDULES["cosine"]()
    both = [objective(schedule, times) for times in (Uncorrected(Adaptive(bins=4)), Adaptive(bins=4))]
    for own in both:
        own(GaussianData().sample(256, torch.Generator().manual_seed(0)), step=0)
    found, wanted = both[0].times.times.average, both[1].times.average
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert wanted.sum() > 0
    state = both[0].state_dict()
    assert torch.equal(state["times.times.average"], wanted), "a checkpoint has what was learned"


def test_where_nothing_is_drawn_at_the_times_the_network_is_not_asked_for_them():
    """A chain alone, without images: there is no error of the noise to learn from, and no call for one."""
    denoiser = exact(GaussianData(), SCHEDULES["cosine"](), xhat.V)
    chain = xhat.ImageLoss(lambda x: x.flatten(1).square().sum(1), xhat.FullChain(steps=2), expect=None)
    own = xhat.Objective(denoiser, {"chain": xhat.Term(chain)}, InfoNoise(bins=4))
    own(shape=(2, 1, 2, 2), step=0)
    assert not own.times.seen.any()


def test_shifted_times_are_shifted_before_they_are_left_uncorrected():
    with pytest.raises(ValueError, match=r"Uncorrected\(Shifted\(LogitNormal"):
        Shifted(Uncorrected(LogitNormal()), 2.0)
    own = objective(SCHEDULES["flow"](), Uncorrected(Uncorrected(Shifted(LogitNormal(), 2.0))))
    assert isinstance(own.times.times, Shifted)
    assert (own.draw(GaussianData().sample(8, torch.Generator().manual_seed(0)), step=0).importance == 1).all()


def test_nothing_is_said_of_a_bound_while_the_weighting_goes_on_changing():
    """Before it has learned, InfoNoise is uniform: an ELBO weighting is no maximum likelihood for that."""
    said = []
    for times in (InfoNoise(), Uncorrected(InfoNoise())):
        own = objective(SCHEDULES["cosine"](), times, xhat.Denoising(weighting=xhat.elbo))
        said.append(set(named_remarks(profile(own, levels(own.denoiser.schedule), 1.0), own)))
    assert "maximum_likelihood" in said[0]
    assert not {"maximum_likelihood", "augmented_bound", "no_bound"} & said[1]


def test_a_profile_has_no_nan_where_a_density_vanishes():
    own = objective(SCHEDULES["cosine"](), Uncorrected(LogNormalSigma(0, 0.1)))
    found = profile(own, levels(own.denoiser.schedule), 1.0)
    assert np.isfinite(found.importance).all()
    assert np.isfinite(found.gradient).all()


def test_a_bound_with_uncorrected_times_is_said_to_be_none():
    denoiser = exact(GaussianData(), SCHEDULES["linear_beta"](), xhat.NOISE)
    with pytest.warns(UserWarning, match="is no bound: draw them as LogitNormal"):
        xhat.Objective(denoiser, {"b": xhat.Term(xhat.VariationalBound())}, Uncorrected(LogitNormal()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # uniform times need no correction
        xhat.Objective(denoiser, {"b": xhat.Term(xhat.VariationalBound())}, Uncorrected(Stratified()))


def test_a_finest_level_below_all_is_refused():
    with pytest.raises(ValueError, match="a logsnr above -20"):
        InfoNoise(finest=-30)
