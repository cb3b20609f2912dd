"""Importance weights that waste samples, and who is told."""

import warnings

import pytest
import torch

import xhat
from oracles import SCHEDULES, ScaledX0
from xhat import FLOW, X0, Denoiser, Denoising, Flow, Objective, Term, weightings
from xhat.config.presets import preset_names
from xhat.diffusion.times import LogitNormal, LogNormalSigma
from xhat.diffusion.weightings import from_density
from xhat.objective.effective_samples import effective_share, effective_shares


def shares(made):
    return effective_shares(made.terms, made.times, made.denoiser.schedule)


def objective(times, weight=None, schedule=None, space=FLOW, loss=None):
    schedule = schedule or Flow()
    term = Term(loss or Denoising(space, weight or weightings.constant))
    return Objective(Denoiser(ScaledX0(schedule, space), schedule, space), {"d": term}, times)


def test_the_share_is_that_of_the_samples_drawn():
    """(Σw)²/(n Σw²), n = 1/share equal ones: against random samples of a density whose tails are fat enough."""
    times = LogitNormal(0.0, 1.8)
    schedule = Flow()
    w = times.sample(schedule, 2**16, torch.Generator().manual_seed(5))[1].double()
    assert effective_share(times, schedule) == pytest.approx(float(w.sum() ** 2 / (len(w) * w.square().sum())), rel=0.05)


@pytest.mark.trap(43)
@pytest.mark.parametrize(
    ("times", "schedule", "name"),
    [
        (lambda: LogitNormal(0.8, 0.8), Flow, "LogitNormal"),
        (lambda: LogitNormal(0.0, 1.0), Flow, "LogitNormal"),  # SD3's script, where the density is the weighting
        (LogNormalSigma, xhat.schedules.VE, "LogNormalSigma"),
        (LogNormalSigma, xhat.Cosine, "LogNormalSigma"),
    ],
    ids=["jit", "sd3", "edm", "cosine"],
)
def test_the_constructor_says_that_a_density_wastes_samples_and_names_the_way_out(times, schedule, name):
    space = FLOW if schedule is Flow else X0
    with pytest.warns(UserWarning, match=rf"{name} draws.*% of the samples.*from_density\({name}"):
        objective(times(), schedule=schedule(), space=space)
    with warnings.catch_warnings():  # the density as the weighting, alone or among others: each sample counts once
        warnings.simplefilter("error")
        for loss in (
            Denoising(space, from_density(times())),
            Denoising(space, weightings.product(weightings.constant, from_density(times()))),
            xhat.LearnedUncertainty(Denoising(space), from_density(times())),
            Denoising(space, weightings.convert_weighting(from_density(times()), space, space)),
        ):
            made = objective(times(), None, schedule(), space, loss)
            assert shares(made)["d"] == pytest.approx(1)


@pytest.mark.parametrize("schedule", ["cosine", "flow", "linear_beta"])
@pytest.mark.parametrize(
    "times", [xhat.times.Stratified, xhat.times.Uniform, xhat.times.Adaptive, lambda: LogitNormal(0.0, 2.0)]
)
def test_nobody_is_told_where_samples_count(times, schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = objective(times(), schedule=SCHEDULES[schedule](), space=X0)
    assert shares(made)["d"] > 0.25


def test_an_uneven_weighting_under_uniform_times_is_nobodys_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(xhat.times.Stratified(), from_density(LogNormalSigma()), xhat.schedules.VE(), X0)


@pytest.mark.parametrize("name", preset_names())
def test_no_preset_wastes_its_samples(name, recwarn):
    from xhat.config.build import build_denoiser, build_objective
    from xhat.config.parsing import read_config, recipe_path
    from xhat.data.shape import DataShape

    config = read_config(recipe_path(name))
    made = build_objective(config, build_denoiser(config, DataShape(1, 28, 10 if config.labels else None)))
    assert all(share > 0.5 for share in shares(made).values())
    assert not [w for w in recwarn if "samples" in str(w.message)]


@pytest.mark.trap(43)
def test_sd3s_density_corrected_for_importance_is_another_objective():
    """Drawing logit-normal times and dividing by the density learns the uniform loss, not SD3's."""
    schedule, own = Flow(), torch.Generator().manual_seed(0)
    as_weighting, corrected = (
        objective(xhat.times.Stratified(), from_density(LogitNormal(0, 1))),
        objective(xhat.times.Stratified()),
    )
    x0 = torch.randn(4000, 1, 2, 2, generator=own).double()
    logsnr = torch.tensor([-3.0, 0.0, 3.0]).double()
    ratio = as_weighting.effective_weighting(logsnr) / corrected.effective_weighting(logsnr)
    t = schedule.t_of(logsnr)
    density = torch.distributions.LogisticNormal(torch.zeros(1).double(), torch.ones(1).double())
    expected = torch.exp(density.log_prob(torch.stack([t, 1 - t], -1)))
    torch.testing.assert_close(ratio, expected / (1 - schedule.t_min), rtol=2e-3, atol=0)
    assert as_weighting(x0, step=0)["loss"] != corrected(x0, step=0)["loss"]


def test_a_hybrid_has_the_weighting_of_its_simple_loss():
    simple = Denoising(FLOW, from_density(LogitNormal(0, 1)))
    schedule = Flow()
    hybrid = Term(xhat.Hybrid(simple=simple, learns=xhat.losses.variational.everything))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Objective(Denoiser(ScaledX0(schedule, FLOW), schedule, FLOW), {"h": hybrid}, LogitNormal(0, 1))
    assert shares(made)["h"] == pytest.approx(1)
