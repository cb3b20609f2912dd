"""Regressing on the noise really added in a step: the forward process's joint distribution, and the same expected gradient."""

from dataclasses import replace

import pytest
import torch

import xhat
from oracles import DISCRETE, SCHEDULES, GaussianData, ScaledX0
from xhat import Denoiser, Denoising, Increment, Objective, Term, weightings
from xhat.diffusion.targets import STEP_NOISE
from xhat.losses.increment import last_step

DATA = GaussianData(mean=0.3, std=0.5)
N = 30_000


def close(a, b, rtol=1e-6, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw_at(schedule, index, rng, **how):
    """A draw of N images at one grid time, and its denoiser x0_hat = 0.7 z + 0.1."""
    denoiser = Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    objective = Objective(denoiser, {"d": Term(Denoising())}, **how)
    return denoiser, objective.draw_at(DATA.sample(N, rng), torch.full((N,), index / schedule.steps), step=3)


def within(samples, expected, errors=4.5):
    """The mean of (N, ...) samples, within so many of its standard errors; a constant exactly."""
    flat = samples.detach().flatten(1).mean(1)
    assert abs(flat.mean().item() - float(expected)) <= errors * flat.std().item() / len(flat) ** 0.5 + 1e-9


def betas(name):
    """Forward variances by hand."""
    if name != "linear_beta":
        bar = SCHEDULES[name]().alpha_bar
        return 1 - bar[1:] / bar[:-1]
    return torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)


@pytest.mark.parametrize("index", [1, 2, 30, 99, 100])
@pytest.mark.parametrize("name", DISCRETE)
def test_the_step_back_has_the_forward_process_joint_distribution(name, index, rng):
    """All first and second moments of (x0, z_s, z_t - sqrt(1 - beta) z_s): the increment is N(0, beta) and sees neither."""
    schedule = SCHEDULES[name]()
    beta, bar = betas(name)[index - 1], schedule.alpha_bar[index - 1]
    _, draw = draw_at(schedule, index, rng)
    before, added = last_step(schedule, draw)
    close(before * (1 - beta).sqrt() + added, draw.z, rtol=1e-4, atol=1e-6)
    within(before, bar.sqrt() * DATA.mean)
    within(added, 0)
    within(added**2, beta)
    within((added**2 - beta) ** 2, 2 * beta**2)  # of a Gaussian
    within(added * draw.x0, 0)
    within(added * before, 0)
    noise = before - bar.sqrt() * draw.x0
    within(noise**2, 1 - bar)
    within(noise * draw.x0, 0)
    within(before * draw.z, (1 - beta).sqrt() * (bar * (DATA.std**2 + DATA.mean**2) + 1 - bar))


@pytest.mark.parametrize("index", [1, 2, 30, 100])
@pytest.mark.parametrize("name", ["linear_beta", "cosine_beta"])
def test_the_expected_loss_is_step_noise_and_what_is_irreducible(name, index, rng):
    """And the gradient's expectation is the same, image by image; the weight multiplies both parts."""
    schedule, weight = SCHEDULES[name](), weightings.p2()
    denoiser, draw = draw_at(schedule, index, rng)
    with pytest.warns(UserWarning, match="written for the noise loss"):
        drawn, known = Increment(weight), Denoising(STEP_NOISE, weight)
    t, factor = draw.t[:1], weight(schedule.logsnr(draw.t[:1]), schedule)
    bar, beta = schedule.alpha_bar, betas(name)[index - 1]
    by_hand = beta * (1 - beta) * (1 - bar[index - 1]) / (1 - bar[index])
    close(Increment.irreducible(schedule, t), by_hand.reshape(1), rtol=1e-9, atol=1e-15)
    a, b = drawn(denoiser, draw), known(denoiser, draw)
    assert a.shape == (N,)
    within((a - b).unsqueeze(1), factor * by_hand)
    # d/dscale of mean (y - scale u - v)² per image, by finite differences: the loss is quadratic in the scale
    slopes = []
    for loss in (drawn, known):
        values = []
        for scale in (0.6, 0.8):
            denoiser.net.scale.data.fill_(scale)
            values.append(loss(denoiser, replace(draw, prediction=denoiser(draw.z, draw.t))))
        slopes.append((values[1] - values[0]) / 0.2)
    assert slopes[1].abs().mean() > 0
    within((slopes[0] - slopes[1]).unsqueeze(1), 0)
    if index > 1:
        assert slopes[0].var() > slopes[1].var()


def test_the_gradient_reaches_the_network_through_the_prediction_alone(rng):
    """autograd's gradient is that of the mean square by hand: the drawn step is a constant."""
    schedule = SCHEDULES["linear_beta"]()
    denoiser, draw = draw_at(schedule, 30, rng)
    Increment()(denoiser, draw).mean().backward()
    _, added = last_step(schedule, draw)
    _, per_noise = STEP_NOISE.coefficients(schedule, draw.t[:1].double())
    alpha, sigma = schedule.alpha(draw.t[:1].double()), schedule.sigma(draw.t[:1].double())
    guess = per_noise * (draw.z - alpha * (0.7 * draw.z + 0.1)) / sigma
    close(Increment()(denoiser, draw), (added - guess).square().flatten(1).mean(1), rtol=1e-4)
    close(denoiser.net.scale.grad, (2 * (added - guess) * per_noise * alpha / sigma * draw.z).mean(), rtol=1e-4)


@pytest.mark.parametrize("name", DISCRETE)
def test_in_the_first_step_all_noise_is_known(name, rng):
    """At t = 1/T z_s is x0: the loss is STEP_NOISE's for every image."""
    schedule = SCHEDULES[name]()
    denoiser, draw = draw_at(schedule, 1, rng)
    close(last_step(schedule, draw)[0], draw.x0)
    close(Increment()(denoiser, draw), Denoising(STEP_NOISE)(denoiser, draw), rtol=1e-4)
    close(Increment.irreducible(schedule, draw.t[:1]), torch.zeros(1, dtype=torch.float64))


def test_input_perturbation_does_not_reach_the_increment(rng):
    """The target is made of the clean noise: its variance stays beta."""
    schedule = SCHEDULES["linear_beta"]()
    denoiser = Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    objective = Objective(denoiser, {"d": Term(Increment())}, input_perturbation=3.0)
    draw = objective.draw(DATA.sample(N, rng), step=3)
    _, added = last_step(schedule, draw)
    within(added**2 / betas("linear_beta")[schedule.index(draw.t) - 1].reshape(-1, 1, 1, 1), 1)


def test_the_step_is_a_function_of_seed_step_and_image(rng):
    """A part of the batch sees what the whole does; another step sees other noise."""
    schedule, x0 = SCHEDULES["linear_beta"](), DATA.sample(8, rng)
    denoiser = Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    objective = Objective(denoiser, {"d": Term(Increment())})
    whole = last_step(schedule, objective.draw(x0, step=2))[1]
    part = objective.draw(x0[5:], step=2, shard=xhat.Shard(5, 8))
    assert torch.equal(last_step(schedule, part)[1], whole[5:])
    fresh = objective.draw(x0, step=2).normal("increment")
    assert not torch.equal(fresh, objective.draw(x0, step=3).normal("increment"))


def test_its_noise_weight_is_step_noises():
    """(beta/sigma)² on the noise error."""
    schedule = SCHEDULES["linear_beta"]()
    denoiser = Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    t = schedule.time(torch.tensor([1, 20, 70])).double()
    expected = (betas("linear_beta")[[0, 19, 69]] / schedule.sigma(t)) ** 2
    close(Increment().noise_weight(denoiser, schedule.logsnr(t)), expected, rtol=1e-4)


def test_a_continuous_schedule_has_no_step():
    schedule = xhat.Cosine()
    objective = Objective(Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V), {"step": Term(Increment())})
    with pytest.raises(ValueError, match="use a Discrete schedule"):
        objective(torch.zeros(2, 1, 2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="use a Discrete schedule"):
        Increment.irreducible(schedule, torch.tensor([0.5]))
