"""The profile of an objective against closed forms, autograd and dense differences; remarks only where they apply."""

import math
from dataclasses import replace

import pytest
import torch

import xhat
from oracles import SCHEDULES, Constant, GaussianData
from xhat import Denoising, Objective, Term
from xhat.analysis.profile import at_levels, levels, profile
from xhat.analysis.remarks import named_remarks, remarks
from xhat.config.build import build_denoiser, build_objective
from xhat.config.parsing import read_config, recipe_path
from xhat.config.presets import preset_names
from xhat.data.shape import DataShape
from xhat.diffusion.weightings import clipped_velocity, elbo, min_snr, sigmoid
from xhat.losses.increment import Increment
from xhat.losses.variational import VariationalBound

DATA = GaussianData(mean=0.3, std=0.5)
SECOND_MOMENT = 0.3**2 + 0.5**2


def objective_of(schedule, target, *losses, times=None, variance=xhat.variances.POSTERIOR):
    net = Constant(torch.zeros(1, 1, 2, 2, dtype=torch.float64))
    return Objective(
        xhat.Denoiser(net, schedule, target, variance=variance), {f"l{i}": Term(x) for i, x in enumerate(losses)}, times
    )


def found(objective, count=161):
    return profile(objective, levels(objective.denoiser.schedule, count), SECOND_MOMENT)


def said(objective):
    return named_remarks(found(objective), objective)


def preset(name):
    config = read_config(recipe_path(name))
    return build_objective(config, build_denoiser(config, DataShape(1, 28, 10 if config.labels else None)))


@pytest.mark.parametrize("schedule", ["cosine", "linear_logsnr", "linear_beta", "cosine_beta"])
@pytest.mark.parametrize("target", [xhat.X0, xhat.V, xhat.NOISE], ids=str)
def test_the_noise_loss_in_every_space(schedule, target):
    """Under a variance-preserving schedule, whatever the network predicts."""
    result = found(objective_of(SCHEDULES[schedule](), target, Denoising()))
    snr = torch.tensor(result.logsnr, dtype=torch.float64).exp()
    expected = {
        "x0": snr,
        "noise": torch.ones_like(snr),
        "v": snr / (1 + snr),
        "scaled_noise": 1 + snr,
        "score": 1 / (1 + snr),
        "flow": snr / (1 + snr.sqrt()) ** 2,
    }
    for name, weight in expected.items():
        assert torch.allclose(torch.tensor(result.weights[name]).double(), weight, rtol=1e-6), name
    assert ("step_noise" in result.weights) == (schedule in ("linear_beta", "cosine_beta"))


def test_spaces_of_a_discrete_step_and_the_outputs_own():
    """The noise loss is sigma²/beta² on the step's noise and 1/b² on mu-tilde, whose error is b noise's at given z."""
    schedule = SCHEDULES["linear_beta"]()
    target = xhat.targets.edm(0.5)
    result = found(objective_of(schedule, target, Denoising()))
    t = torch.tensor(result.t, dtype=torch.float64)
    beta, sigma = 1 - (schedule.alpha(t) / schedule.alpha(t - 0.01)) ** 2, schedule.sigma(t)
    assert torch.allclose(torch.tensor(result.weights["step_noise"]).double(), sigma**2 / beta**2, rtol=1e-5)
    ratio = schedule.alpha(t) / schedule.alpha(t - 0.01)  # mu-tilde = (z - beta/sigma noise)/ratio
    assert torch.allclose(torch.tensor(result.weights["posterior_mean"]).double(), (ratio * sigma / beta) ** 2, rtol=1e-5)
    assert result.output == "edm(0.5)"
    own = torch.tensor(result.logsnr).double().exp() / target.gain_at(schedule, torch.tensor(result.logsnr).double())
    assert torch.allclose(torch.tensor(result.weights["edm(0.5)"]).double(), own, rtol=1e-6)


def test_min_snr_on_v():
    result = found(objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.X0, min_snr(5))))
    snr = torch.tensor(result.logsnr, dtype=torch.float64).exp()
    assert torch.allclose(torch.tensor(result.weights["v"]).double(), snr.clamp(max=5) / (snr + 1), rtol=1e-6)


def test_terms_add_with_their_weights_and_others_are_named():
    denoiser = xhat.Denoiser(Constant(torch.zeros(1, 1, 2, 2)), xhat.Cosine(), xhat.V)
    terms = {
        "a": Term(Denoising(), 0.5),
        "b": Term(Denoising(xhat.X0), 2.0),
        "median": Term(Denoising(norm=xhat.norms.absolute)),
        "found": Term(Denoising(), xhat.multipliers.DualAscent(0.1)),
    }
    result = found(Objective(denoiser, terms))
    snr = torch.tensor(result.logsnr, dtype=torch.float64).exp()
    assert torch.allclose(torch.tensor(result.weights["noise"]).double(), 0.5 + 2 / snr, rtol=1e-6)
    assert (result.counted, result.left_out) == (("a", "b"), ("median", "found"))


CASES = [
    *(("cosine", target) for target in (xhat.X0, xhat.NOISE, xhat.V, xhat.targets.SCALED_NOISE)),
    ("flow", xhat.FLOW),
    ("ve", xhat.targets.edm(0.5)),
    ("linear_beta", xhat.X0),
    ("linear_beta", xhat.targets.STEP_NOISE),
]


@pytest.mark.parametrize(("schedule", "target"), CASES, ids=str)
@pytest.mark.parametrize("times", [xhat.times.Uniform, xhat.times.LogitNormal])
def test_the_gradient_is_that_of_autograd(schedule, target, times, rng):
    """RMS of (pixels · d loss/d output) over many images, at a network whose output is 0, with the sample's importance."""
    objective = objective_of(SCHEDULES[schedule](), target, Denoising(xhat.V), times=times())
    result = found(objective, 21)
    for i in (3, 10, 17):
        x0 = DATA.sample(20000, rng)
        t = torch.full((len(x0),), result.t[i], dtype=torch.float64)
        draw = objective.draw_at(x0, t, step=0)
        draw = replace(draw, importance=1 / objective.times.relative_density(objective.denoiser.schedule, t))
        raw = draw.prediction.raw.detach().requires_grad_()
        draw = replace(draw, prediction=type(draw.prediction)(objective.denoiser, draw.z, t, raw, None))
        (gradient,) = torch.autograd.grad(objective.per_image("l0", draw).sum(), raw)
        rms = float((4 * gradient).square().mean().sqrt())  # 4 pixels
        assert rms == pytest.approx(result.gradient[i], rel=0.02)


@pytest.mark.parametrize("name", preset_names())
def test_the_verdict_on_every_preset_by_dense_differences(name):
    """w = weight on the noise error/(-½ d logsnr/dt), the derivative by differences of the logsnr itself."""
    objective = preset(name)
    schedule = objective.denoiser.schedule
    with torch.no_grad():
        if schedule.steps:
            t = torch.arange(2, schedule.steps + 1, dtype=torch.float64) / schedule.steps
            t = t[schedule.logsnr(t).abs() < 10]
            slope = (schedule.logsnr(t - 1 / schedule.steps) - schedule.logsnr(t)) * schedule.steps
        else:
            ends = levels(schedule)[[0, -1]]
            t = schedule.t_of(torch.linspace(float(ends[0]), float(ends[1]), 501, dtype=torch.float64))[1:-1]
            slope = (schedule.logsnr(t - 1e-7) - schedule.logsnr(t + 1e-7)) / 2e-7
        loss = next(term.loss for term in objective.terms.values())
        weight = loss.noise_weight(objective.denoiser, schedule.logsnr(t)) / (slope / 2)
    falls = bool((weight.diff() < -1e-4 * weight.max()).any())  # t grows, so does the noise
    result = found(objective)
    assert result.monotone == (not falls)
    assert result.constant == (float(weight.min() / weight.max()) > 0.99)


def test_the_verdicts_of_kingma_and_gao():
    """Their table 1 and section 4.1: which published weightings are monotone."""
    expected = {
        (xhat.Cosine, xhat.NOISE, Denoising()): False,  # sech(logsnr/2)
        (xhat.Cosine, xhat.V, Denoising(xhat.V)): True,  # e^(-logsnr/2)
        (xhat.Flow, xhat.FLOW, Denoising(xhat.FLOW)): True,  # e^(-logsnr/2)
        (xhat.Cosine, xhat.V, Denoising(weighting=sigmoid(2.0))): True,
        (xhat.Cosine, xhat.V, Denoising(xhat.X0, min_snr(5))): False,
    }
    for (schedule, target, loss), monotone in expected.items():
        assert found(objective_of(schedule(), target, loss)).monotone is monotone
    result = found(objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.V)))
    shape = [w * math.exp(level / 2) for w, level in zip(result.effective, result.logsnr, strict=True)]
    assert max(shape) == pytest.approx(min(shape), rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear_beta", "cosine_beta"])
@pytest.mark.parametrize("variance", [xhat.variances.POSTERIOR, xhat.variances.FORWARD], ids=["posterior", "forward"])
def test_coarse_grids_do_not_spoil_the_verdict(schedule, variance):
    """The bound of 100 steps is the bound, though its first and last steps are far from the continuous limit; so is elbo."""
    schedule = SCHEDULES[schedule]()
    own = found(objective_of(schedule, xhat.V, VariationalBound(), variance=variance))
    assert max(own.effective) > 1.5 * min(own.effective) or variance is xhat.variances.FORWARD
    assert own.constant
    assert found(objective_of(schedule, xhat.V, Denoising(weighting=elbo), variance=variance)).constant
    v = found(objective_of(schedule, xhat.V, Denoising(xhat.V), variance=variance))
    assert (v.monotone, v.constant) == (True, False)


@pytest.mark.parametrize("schedule", ["cosine", "linear_beta"])
def test_where_the_samples_go(schedule, rng):
    """Quartiles and density against many draws."""
    objective = objective_of(SCHEDULES[schedule](), xhat.V, Denoising(xhat.V), times=xhat.times.LogitNormal(0.5, 0.7))
    result = found(objective)
    schedule = objective.denoiser.schedule
    drawn = schedule.logsnr(objective.times.sample(schedule, 200000, rng)[0].double())
    low, high = drawn.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    assert result.middle_half == pytest.approx((low, high), abs=0.05)
    level = torch.tensor(result.logsnr, dtype=torch.float64)
    inside = (level > -1.0) & (level < 1.0)
    known = level[inside]
    area = torch.trapezoid(torch.tensor(result.density).double()[inside], -known)
    # of a grid: half of the points at both ends, as a trapezoid counts them
    share = 0.5 * (
        ((drawn > known[-1] - 1e-4) & (drawn < known[0] + 1e-4)).double().mean()
        + ((drawn > known[-1] + 1e-4) & (drawn < known[0] - 1e-4)).double().mean()
    )
    assert float(area) == pytest.approx(float(share), abs=0.01)


def test_values_between_levels():
    assert at_levels([2.0, 1.5, 0.0], [2.0, 1.0], [4.0, 6.0])[:2] == [4.0, 5.0]
    assert math.isnan(at_levels([2.0, 1.5, 0.0], [2.0, 1.0], [4.0, 6.0])[2])


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_levels_lie_within_the_trained_times(name):
    schedule = SCHEDULES[name]()
    logsnr = levels(schedule)
    t = schedule.t_of(logsnr)
    assert bool((logsnr.diff() < 0).all())
    assert bool((t >= schedule.t_min - 1e-9).all() & (t <= 1).all())
    if schedule.steps:
        assert torch.allclose((t * schedule.steps).round(), t * schedule.steps, atol=1e-6)


PLAIN = ("maximum_likelihood", "augmented_bound", "no_bound")


def test_an_objective_without_surprises_has_one_fact():
    """The bound with v output and uniform times."""
    assert list(said(objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.V)))) == ["augmented_bound"]
    assert remarks(
        found(objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.V))), objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.V))
    )


@pytest.mark.parametrize(
    ("loss", "remark"), list(zip([Denoising(weighting=elbo), Denoising(xhat.V), Denoising()], PLAIN, strict=True))
)
def test_one_verdict(loss, remark):
    assert [name for name in said(objective_of(xhat.Cosine(), xhat.V, loss)) if name in PLAIN] == [remark]


def test_v_with_min_snr_is_untrained_at_high_noise():
    """min(SNR, 5)/(SNR + 1) at logsnr -10, over its largest value 5/6."""
    sentence = said(objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.X0, min_snr(5))))["untrained_noise"]
    number = float(sentence.split("it is ")[1].split(" ")[0])
    assert number == pytest.approx(math.exp(-10) * 6 / 5, rel=0.02)  # the largest one lies between two levels
    assert "(v)" in sentence
    for loss in (Denoising(xhat.V), Denoising(xhat.FLOW)):
        assert "untrained_noise" not in said(objective_of(xhat.Cosine(), xhat.V, loss))


def test_a_small_weight_that_does_not_vanish_is_trained():
    """JiT's: 1/sigma² on x0 is 1 at high noise, a 400th of its largest, and stays there."""
    loss = Denoising(xhat.X0, clipped_velocity(0.05))
    assert "untrained_noise" not in said(objective_of(xhat.Flow(), xhat.X0, loss))


def test_scaled_noise_gives_little_weight_to_low_noise():
    sentence = said(objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.targets.SCALED_NOISE)))["scaled_noise_loss"]
    assert f"{1 / (1 + math.exp(10)):.2g} of the weight" in sentence
    assert "scaled_noise_loss" not in said(objective_of(xhat.Cosine(), xhat.targets.SCALED_NOISE, Denoising()))


@pytest.mark.parametrize(
    ("target", "loss"), [(xhat.targets.STEP_NOISE, Denoising()), (xhat.V, Denoising(xhat.targets.STEP_NOISE))]
)
def test_step_noise_has_a_floor(target, loss, rng):
    """The share that z and x0 leave open, against many drawn steps."""
    objective = objective_of(SCHEDULES["linear_beta"](), target, loss)
    result, schedule = found(objective), objective.denoiser.schedule
    sentence = named_remarks(result, objective)["step_noise_floor"]
    t = torch.tensor(result.t[len(result.t) // 2], dtype=torch.float64)
    ratio = schedule.alpha(t) / schedule.alpha(t - 0.01)
    before, added = (torch.randn(400000, dtype=torch.float64, generator=rng) for _ in range(2))
    step = torch.sqrt(1 - ratio**2) * added
    noise = (ratio * schedule.sigma(t - 0.01) * before + step) / schedule.sigma(t)  # that in z at x0 = 0
    left = 1 - float(torch.corrcoef(torch.stack([step, noise]))[0, 1]) ** 2
    assert left == pytest.approx(float(sentence.split("The rest, ")[1].split(",")[0]), abs=0.005)
    assert "increment_floor" not in named_remarks(result, objective)


def test_the_increment_keeps_its_floor():
    objective = objective_of(SCHEDULES["linear_beta"](), xhat.V, Increment())
    result = found(objective)
    t = torch.tensor(result.t, dtype=torch.float64)
    schedule = objective.denoiser.schedule
    beta = 1 - (schedule.alpha(t) / schedule.alpha(t - 0.01)) ** 2
    floor = Increment.irreducible(schedule, t) / beta
    sentence = named_remarks(result, objective)["increment_floor"]
    assert f"{float(floor.max()):.2g}, depending" in sentence
    assert "step_noise_floor" not in named_remarks(result, objective)
    assert "increment_floor" not in said(objective_of(schedule, xhat.V, Denoising()))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (xhat.NOISE, {"amplified_in_x0"}),
        (xhat.targets.SCORE, {"amplified_in_x0"}),
        (xhat.X0, {"amplified_in_noise"}),
        (xhat.V, set()),
    ],
    ids=str,
)
def test_amplified_errors(target, expected):
    """sigma/alpha = e^5 at logsnr -10 for the noise and there for the score, alpha/sigma for x0; v is safe at both ends."""
    sentences = said(objective_of(xhat.Cosine(), target, Denoising()))
    assert {name for name in sentences if name.startswith("amplified")} == expected
    for name in expected:
        assert f" {math.exp(5):.0f} times" in sentences[name]


def test_samplers_move_samples_alone():
    even = [None, xhat.times.Uniform()]
    assert not any("sampler_moves_samples" in said(objective_of(xhat.Cosine(), xhat.V, Denoising(), times=t)) for t in even)
    sentence = said(objective_of(xhat.Cosine(), xhat.V, Denoising(), times=xhat.times.LogNormalSigma(-1.2, 1.2)))[
        "sampler_moves_samples"
    ]
    quarter = 1.2 * 0.6745  # ln(sigma/alpha) = -logsnr/2 ~ N(-1.2, 1.2²)
    assert f"between logsnr {2.4 - 2 * quarter:.1f} and {2.4 + 2 * quarter:.1f}" in sentence
    assert (
        "Adaptive"
        in said(objective_of(xhat.Cosine(), xhat.V, Denoising(), times=xhat.times.Adaptive()))["sampler_moves_samples"]
    )


@pytest.mark.parametrize(
    ("norm", "centre"),
    [(xhat.norms.absolute, "median of each"), (xhat.norms.euclidean, "geometric"), (xhat.norms.huber(0.1), "between the mean")],
)
def test_other_norms_have_another_minimum(norm, centre):
    sentences = said(objective_of(xhat.Cosine(), xhat.V, Denoising(xhat.V, norm=norm)))
    assert centre in sentences["other_minimum"]
    assert not sentences.keys() & {*PLAIN, "untrained_noise", "gradient_span"}
    assert '"l0" (no weighted squared error' in sentences["not_in_the_numbers"]


def test_the_span_of_the_gradient():
    """Of the x0 loss weighted by SNR: 2 SNR √E[x0²], e^20 between the ends, a tenth within log 10 of the top."""
    sentence = said(objective_of(xhat.Cosine(), xhat.X0, Denoising()))["gradient_span"]
    assert f"{math.exp(20):.2g}" in sentence
    assert "from 10.0 to 7.8" in sentence  # levels are 1/8 apart
    assert "gradient_span" not in said(objective_of(xhat.Cosine(), xhat.NOISE, Denoising()))


def test_what_training_will_find_is_said():
    sentences = said(preset("edm2"))
    assert "balanced_later" in sentences
    assert "balanced_later" not in said(preset("edm"))
    denoiser = xhat.Denoiser(Constant(torch.zeros(1, 1, 2, 2)), xhat.Cosine(), xhat.V)
    objective = Objective(denoiser, {"a": Term(Denoising()), "b": Term(Denoising(), xhat.multipliers.DualAscent(0.1))})
    assert '"b" (its factor is found' in said(objective)["not_in_the_numbers"]
