"""Levels balanced by an average of what they cost: against the closed form of a Gaussian's errors."""

import pytest
import torch

import xhat
from oracles import SCHEDULES, GaussianData, exact
from xhat.losses.balanced import BalancedLevels
from xhat.losses.reference import OnOthers
from xhat.rng import Shard


def trained(loss, steps=400, batch=128, schedule=None):
    schedule = schedule or SCHEDULES["cosine"]()
    objective = xhat.Objective(exact(GaussianData(), schedule, xhat.V), {"d": xhat.Term(loss)})
    for step in range(steps):
        objective(GaussianData().sample(batch, torch.Generator().manual_seed(step)), step=step)
    return objective


def test_each_level_contributes_as_outer_says():
    """The mean loss of each level by its closed form, over the average that was found: 1, wherever it is."""
    loss = BalancedLevels(xhat.Denoising(xhat.NOISE), decay=0.98, bins=20)
    trained(loss)
    logsnr = torch.arange(-9.5, 10, 1.0, dtype=torch.float64)  # the middles of the bins
    fine = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    snr = GaussianData().std ** 2 * (logsnr[:, None] + fine).exp()
    wanted = (snr / (1 + snr)).mean(-1)
    inside = loss.seen > 0.9
    inside[[0, -1]] = False  # where levels beyond count, too
    assert inside.sum() > 12
    found = loss.level_means(logsnr)
    assert (found / wanted - 1)[inside].abs().max() < 0.15
    assert wanted[inside].max() > 20 * wanted[inside].min(), "the levels differ by far more"


def test_outer_multiplies_and_is_not_averaged():
    means = []
    for outer in (xhat.weightings.constant, xhat.weightings.sigmoid(0)):
        loss = BalancedLevels(xhat.Denoising(xhat.V), outer, bins=8)
        objective = trained(loss, steps=3)
        means.append(loss.average / loss.seen.clamp(min=1e-9))
        draw = objective.draw(GaussianData().sample(16, torch.Generator().manual_seed(9)), step=9)
        logsnr = objective.denoiser.schedule.logsnr(draw.t)
        plain = xhat.Denoising(xhat.V)(objective.denoiser, draw)
        wanted = outer(logsnr, objective.denoiser.schedule) * plain / loss.level_means(logsnr)
        torch.testing.assert_close(loss(objective.denoiser, draw), wanted)
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-7)


def test_parts_of_a_batch_learn_as_the_whole():
    x0 = GaussianData().sample(64, torch.Generator().manual_seed(0))
    found = []
    for parts in (1, 4):
        loss = BalancedLevels(xhat.Denoising(xhat.V), bins=8)
        objective = xhat.Objective(exact(GaussianData(), SCHEDULES["cosine"](), xhat.V), {"d": xhat.Term(loss)})
        for part, rows in enumerate(x0.chunk(parts)):
            objective(rows, step=0, shard=Shard(part * len(rows), 64))
        found.append(loss.average.clone())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-9)
    assert found[0].sum() > 0


def test_importance_is_not_averaged_in():
    """Times of another density: the same averages."""
    found = []
    for times in (xhat.times.Stratified(), xhat.times.LogitNormal(0.5, 1.0)):
        loss = BalancedLevels(xhat.Denoising(xhat.V), decay=0.99, bins=20)
        objective = xhat.Objective(exact(GaussianData(), SCHEDULES["cosine"](), xhat.V), {"d": xhat.Term(loss)}, times)
        for step in range(150):
            objective(GaussianData().sample(128, torch.Generator().manual_seed(step)), step=step)
        found.append((loss.average / loss.seen)[6:14])
    torch.testing.assert_close(*found, rtol=0.1, atol=0)


def test_before_the_first_step_it_is_the_loss_itself_and_evaluation_teaches_nothing():
    loss = BalancedLevels(xhat.Denoising(xhat.V))
    objective = xhat.Objective(exact(GaussianData(), SCHEDULES["cosine"](), xhat.V), {"d": xhat.Term(loss)}).eval()
    draw = objective.draw(GaussianData().sample(8, torch.Generator().manual_seed(0)), step=0)
    torch.testing.assert_close(loss(objective.denoiser, draw), xhat.Denoising(xhat.V)(objective.denoiser, draw))
    objective(draw.x0, step=0)
    assert not loss.seen.any()


def test_values_that_are_not_finite_are_left_out():
    loss = BalancedLevels(xhat.Denoising(xhat.V), bins=4)
    loss.update(SCHEDULES["cosine"](), torch.tensor([0.1, 0.9]), torch.tensor([torch.nan, torch.inf]))
    assert not loss.seen.any()


def test_a_loss_of_zero_says_nothing_of_its_level():
    """Outside of a weighting's range, or under an empty mask: the next image there is not multiplied by 1e30."""
    loss = BalancedLevels(xhat.Denoising(xhat.V, xhat.weightings.between(-2, 2)), bins=8)
    objective = trained(loss, steps=3)
    for step in (3, 4):
        value = objective(GaussianData().sample(64, torch.Generator().manual_seed(step)), step=step)["loss"]
        assert 0 < value.item() < 10


@pytest.mark.parametrize("outer", [xhat.weightings.constant, xhat.weightings.sigmoid(0)])
def test_it_learns_on_a_schedule_that_learns(outer):
    loss = BalancedLevels(xhat.Denoising(xhat.V), outer)
    trained(loss, steps=2, schedule=SCHEDULES["learned"]())
    assert loss.seen.any()
    assert not loss.average.requires_grad


def test_a_cast_of_the_model_does_not_round_what_was_learned():
    loss = BalancedLevels(xhat.Denoising(xhat.V))
    assert loss.bfloat16().average.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: BalancedLevels(xhat.Denoising(), bins=0), "at least 1 bin"),
        (lambda: BalancedLevels(xhat.Denoising(), decay=1.0), r"in \[0, 1\)"),
        (lambda: trained(OnOthers(BalancedLevels(xhat.Denoising()))), "make it the whole loss of a term"),
        (lambda: trained(xhat.Hybrid(simple=BalancedLevels(xhat.Denoising()))), "make it the whole loss of a term"),
    ],
)
def test_what_cannot_be_balanced_is_refused(make, line):
    with pytest.raises(ValueError, match=line):
        make()
