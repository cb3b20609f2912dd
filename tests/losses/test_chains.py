"""Losses on the end of a chain of sampling steps: gradients against finite differences and hand-written chains."""

import re

import jaxtyping
import pytest
import torch
from torch import nn

import xhat
from oracles import SCHEDULES, SHAPE, TARGETS, ScaledX0
from xhat import (
    DDIM,
    DDPM,
    X0,
    Denoiser,
    Denoising,
    FullChain,
    ImageLoss,
    Last,
    Objective,
    OneStep,
    RandomLast,
    ReFL,
    Rollout,
    Shard,
    Surrogate,
    Term,
    V,
    every,
    weightings,
)
from xhat.config.expressions import evaluate
from xhat.config.names import OF_TERMS
from xhat.diffusion.weightings import between
from xhat.errors import ConfigError
from xhat.losses.penalties import Paired
from xhat.sampling.differentiate import AllSteps, NoSteps
from xhat.sampling.samplers import DPMSolver2M, Euler, Heun, Leapfrog
from xhat.sampling.spacings import rollout_times, uniform_times
from xhat.tensors import over_images

ALL = between(-float("inf"), float("inf"))
SAMPLERS = [DDIM(), DDIM(eta=1.0), DDPM(), Euler(), Heun(), DPMSolver2M(), Leapfrog()]


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


class Wave(nn.Module):
    """A small smooth network with five parameters and a memory of its calls."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.8, 0.6, -0.3, 0.2, 0.1], dtype=torch.float64))
        self.calls = 0

    def forward(self, z, t):
        self.calls += 1
        a, b, c, d, e = self.w
        mixed = z + 0.3 * z.flip(-1)
        return a * torch.tanh(b * mixed + c * over_images(t, z)) + d * z + e


def penalty(images):
    """Smooth, not convex, of every pixel."""
    return (torch.sin(2 * images) + images**2).flatten(1).mean(1)


def make(image, target=V, schedule="flow", terms=None, rows=3, weight=ALL):
    """A denoiser, an objective of one image loss and images."""
    made = SCHEDULES[schedule]()
    denoiser = Denoiser(Wave(), made, target)
    loss = ImageLoss(penalty, image, weighting=weight if image.at_drawn_time else None)
    x0 = torch.randn(rows, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    return denoiser, Objective(denoiser, terms or {"i": Term(loss)}, seed=5), x0


def gradient(objective, x0, **how):
    objective.eval().zero_grad()  # the same draw at each call
    objective(x0, **how)["loss"].backward()
    return objective.denoiser.net.w.grad.clone()


def finite_differences(objective, x0, step=1e-6, **how):
    """Central differences of the loss over each parameter."""
    w, found = objective.eval().denoiser.net.w, []
    with torch.no_grad():
        for i in range(len(w)):
            values = []
            for sign in (1, -1):
                w[i] += sign * step
                values.append(objective(x0, **how)["loss"])
                w[i] -= sign * step
            found.append((values[0] - values[1]) / (2 * step))
    return torch.stack(found)


@pytest.mark.trap(27)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("chain", [Rollout, FullChain])
def test_the_whole_chains_gradient_equals_finite_differences(chain, sampler):
    _, objective, x0 = make(chain(sampler, steps=4, differentiate=AllSteps()))
    close(gradient(objective, x0), finite_differences(objective, x0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_every_target_equals_finite_differences(target):
    schedule = "ve" if target.name.startswith("edm") else "cosine"
    for image in (OneStep(), Rollout(steps=3, differentiate=AllSteps()), FullChain(steps=3, differentiate=AllSteps())):
        _, objective, x0 = make(image, target, schedule, weight=between(-4, 4))
        close(gradient(objective, x0), finite_differences(objective, x0), rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_the_image_is_the_same_whatever_the_network_predicts(target):
    """One function, two targets: one image (so that parameterizations cannot be mixed up)."""
    schedule = SCHEDULES["cosine"]()
    x0 = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = []
    for own in (target, X0):
        denoiser = Denoiser(ScaledX0(schedule, own), schedule, own)
        objective = Objective(denoiser, {"d": Term(Denoising(space=X0))}, seed=1)
        draw = objective.draw(x0, step=0)
        images.append([estimate(denoiser, draw) for estimate in (OneStep(), Rollout(steps=3), FullChain(steps=3))])
    for mine, other in zip(*images, strict=True):
        close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("how", [Last(1), Last(2), AllSteps()], ids=str)
def test_checkpointing_changes_no_gradient(sampler, how):
    """Equal to the chain that keeps its activations."""
    for chain in (Rollout, FullChain):
        pair = [gradient(*make(chain(sampler, 4, how, checkpoint=c))[1:]) for c in (True, False)]
        close(*pair)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_last_k_steps_equal_a_detach_by_hand(k):
    """DDIM written out, with a detach before the last k steps."""
    denoiser, objective, x0 = make(FullChain(DDIM(), 4, Last(k)))
    found = gradient(objective, x0)
    schedule, draw = denoiser.schedule, objective.draw(x0, step=0)
    times = uniform_times(schedule, 4)
    z = draw.normal("chain")  # sigma(1) = 1 on Flow
    for i in range(4):
        t, s = times[i].expand(3), times[i + 1].expand(3)
        z = z.detach() if i == 4 - k else z
        p = denoiser(z, t)
        z = over_images(schedule.alpha(s), z) * p.x0 + over_images(schedule.sigma(s), z) * p.noise
    (by_hand,) = torch.autograd.grad(penalty(z).mean(), denoiser.net.w)
    close(found, by_hand)


def test_full_chain_is_a_sample_of_the_model():
    denoiser, objective, x0 = make(FullChain(Heun(), 5))
    draw = objective.draw(x0, step=7)
    by_hand = xhat.sample(denoiser, Heun(), draw.normal("chain"), uniform_times(denoiser.schedule, 5))
    close(FullChain(Heun(), 5)(denoiser, draw), by_hand)
    assert not torch.equal(objective.draw(x0, step=8).normal("chain"), draw.normal("chain"))


def test_one_step_of_ddim_is_the_one_step_estimate():
    denoiser, objective, x0 = make(OneStep())
    draw = objective.draw(x0, step=0)
    close(Rollout(DDIM(), steps=1)(denoiser, draw), OneStep()(denoiser, draw), rtol=1e-12)


def test_a_rollout_of_the_exact_denoiser_converges_to_its_flow(rng):
    """Gaussian data: the flow maps z_t to x0 = m + s (z_t - alpha m)/sqrt(alpha² s² + sigma²), whatever each image's t."""
    from oracles import GaussianData, exact

    data, schedule = GaussianData(), SCHEDULES["cosine"]()
    denoiser = exact(data, schedule)
    x0 = data.sample(6, rng)
    draw = Objective(denoiser, {"d": Term(Denoising(space=V))}).draw(x0, step=0)
    reference = Rollout(Heun(), steps=400)(denoiser, draw)
    errors = [float((Rollout(Heun(), steps=n)(denoiser, draw) - reference).abs().max()) for n in (8, 16, 32)]
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


@pytest.mark.parametrize("schedule", ["linear_beta", "cosine", "flow"])
def test_a_rollout_visits_trained_times_only(schedule):
    made = SCHEDULES[schedule]()
    grid = made.steps or 1000
    t = made.on_grid(torch.tensor([1 / grid, 2 / grid, 3 / grid, 0.5, 1.0], dtype=torch.float64))
    times = rollout_times(made, t, 4)
    assert times.shape == (5, 5)
    close(times[0], t.clamp(min=made.t_min))
    assert bool((times[-1] == 0).all())
    assert bool((times.diff(dim=0) <= 0).all())
    assert bool((times[:-1] >= made.t_min).all())
    close(times, made.on_grid(times))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_an_image_with_few_grid_points_left_rests(sampler):
    """Resting changes nothing: the same end as without the idle steps; every gradient is finite."""
    schedule = SCHEDULES["linear_beta"]()
    denoiser = Denoiser(Wave(), schedule, V)
    z = torch.randn(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([3.0, 3.0, 2.0, 2.0, 1.0, 0.0], dtype=torch.float64).unsqueeze(1) / schedule.steps
    brisk = grid[[0, 2, 4, 5]]
    place = {0: 1, 1: 3, 2: 4}  # number of a brisk step -> the same step among the idle ones
    noise = [torch.randn(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    with_rests = xhat.sample(denoiser, sampler, z, grid, differentiate=AllSteps(), noise=lambda i: noise[i])
    without = xhat.sample(denoiser, sampler, z, brisk, noise=lambda i: noise[place[i]])
    if not isinstance(sampler, Heun | DPMSolver2M | Leapfrog):  # those fall back to first order next to a rest
        close(with_rests.detach(), without)
    with_rests.sum().backward()
    assert bool(torch.isfinite(denoiser.net.w.grad).all())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("schedule", ["linear_beta", "flow"])
def test_an_image_does_not_depend_on_its_batch_mates(sampler, schedule):
    """Also if one of them is so near the data that it rests."""
    made = SCHEDULES[schedule]()
    denoiser = Denoiser(Wave(), made, V)
    z = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = made.on_grid(torch.tensor([0.7, made.t_min], dtype=torch.float64))
    times = rollout_times(made, t, 5)
    both = xhat.sample(denoiser, sampler, z, times, noise=lambda i: torch.ones_like(z))
    alone = xhat.sample(denoiser, sampler, z[:1], times[:, :1], noise=lambda i: torch.ones_like(z[:1]))
    close(both[:1], alone)


class TestSurrogates:
    """The value of a true sample with another gradient."""

    @pytest.mark.parametrize("sampler", [DDIM(), DDPM(), Heun(), DPMSolver2M()], ids=str)
    def test_the_value_is_that_of_the_true_sample(self, sampler):
        values = [make(FullChain(sampler, 6, how))[1](make(OneStep())[2])["i"] for how in (Last(1), Surrogate(2), Surrogate(6))]
        close(values[1].detach(), values[0].detach())
        close(values[2].detach(), values[0].detach())

    def test_all_steps_equal_the_sum_of_single_steps_by_hand(self):
        """Euler on the straight path: x_0 = z_1 + sum (s - t) v_i, with every z_i cut from the graph."""
        denoiser, objective, x0 = make(FullChain(Euler(), 4, Surrogate(4)))
        found = gradient(objective, x0)
        times = uniform_times(denoiser.schedule, 4)
        z = end = objective.draw(x0, step=0).normal("chain")
        for i in range(4):
            p = denoiser(z, times[i].expand(3))
            end = end + (times[i + 1] - times[i]) * (p.noise - p.x0)
            z = (z + (times[i + 1] - times[i]) * (p.noise - p.x0)).detach()
        (by_hand,) = torch.autograd.grad(penalty(end).mean(), denoiser.net.w)
        close(found, by_hand)

    def test_random_steps_are_unbiased_for_all_of_them(self):
        """Every single step occurs, and the mean over the four of them is the gradient of all."""
        _, objective, x0 = make(FullChain(Euler(), 4, Surrogate(1)))
        everything = gradient(make(FullChain(Euler(), 4, Surrogate(4)))[1], x0)
        noise = objective.draw(x0, step=0).normal("chain")
        found = {}
        for step in range(200):
            draw = objective.draw(x0, step=step)
            object.__setattr__(draw, "normal", lambda *_: noise)
            value = penalty(FullChain(Euler(), 4, Surrogate(1))(objective.denoiser, draw)).mean()
            (g,) = torch.autograd.grad(value, objective.denoiser.net.w)
            found[tuple(round(float(v), 9) for v in g)] = g
        assert len(found) == 4
        close(torch.stack(list(found.values())).mean(0), everything)

    def test_refl_sees_x0_hat_of_a_late_step(self):
        """The chain by hand down to one of the last three times; only the last call has a gradient."""
        denoiser, objective, x0 = make(FullChain(DDIM(), 6, ReFL(3)))
        times = uniform_times(denoiser.schedule, 6)
        ends = {}
        for step in range(40):
            draw = objective.draw(x0, step=step)
            found = FullChain(DDIM(), 6, ReFL(3))(denoiser, draw)
            for stop in (3, 4, 5):
                z = xhat.sample(denoiser, DDIM(), draw.normal("chain"), times[: stop + 1])
                image = denoiser(z, times[stop].expand(3)).x0
                if torch.allclose(found, image):
                    ends[stop] = True
                    pair = [torch.autograd.grad(v.sum(), denoiser.net.w)[0] for v in (found, image)]
                    close(*pair)
        assert set(ends) == {3, 4, 5}

    def test_random_last_takes_each_number_of_steps(self):
        _, objective, x0 = make(FullChain(DDIM(), 4, RandomLast(3)))
        found = set()
        for step in range(30):
            g = gradient(objective, x0, step=step)
            truth = [gradient(make(FullChain(DDIM(), 4, Last(k)))[1], x0, step=step) for k in (1, 2, 3)]
            (k,) = [i for i, other in enumerate(truth, 1) if torch.allclose(g, other, rtol=1e-9)]
            found.add(k)
        assert found == {1, 2, 3}


def test_a_chain_is_a_function_of_seed_step_and_sample_alone():
    """Two shards see what one process would have seen, noise of the sampler included; K is the same on both."""
    image = FullChain(DDPM(), 4, RandomLast(4))
    denoiser, objective, _ = make(image)
    x0 = torch.zeros(70, *SHAPE, dtype=torch.float64)
    whole = image(denoiser, objective.draw(x0, step=2))
    parts = [image(denoiser, objective.draw(x0[a:b], step=2, shard=Shard(a, 70))) for a, b in ((0, 35), (35, 70))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_full_chain_is_not_importance_weighted():
    """Its value does not depend on where the times were drawn; a rollout's is corrected."""
    values = {}
    for name, times in (("uniform", xhat.times.Uniform()), ("skewed", xhat.times.LogitNormal(1.0, 0.7))):
        denoiser, _, x0 = make(OneStep())
        objective = Objective(denoiser, {"i": Term(ImageLoss(penalty, FullChain(steps=3)))}, times, seed=5)
        values[name] = objective(x0)["i"]
    assert torch.equal(values["uniform"], values["skewed"])


def test_the_shared_call_is_recomputed_where_a_chain_counts():
    """Network calls of a step: forward 1 + 3, and again in the backward pass; without the chain 1."""
    loss = ImageLoss(penalty, FullChain(DDIM(), 3, AllSteps()))
    terms = {"base": Term(Denoising(space=V)), "i": Term(loss, when=every(2))}
    denoiser, objective, x0 = make(OneStep(), terms=terms)
    for step, calls in ((0, 8), (1, 1)):
        denoiser.net.calls = 0
        objective(x0, step=step)["loss"].backward()
        assert denoiser.net.calls == calls


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FullChain(DDIM(), 4, NoSteps()), r"needs a gradient: use Last\(1\) or AllSteps\(\)"),
        (lambda: FullChain(DDIM(), 4, Last(5)), r"Last\(5\), but the chain takes 4 steps: choose Last\(1\) to Last\(4\)"),
        (lambda: Rollout(DDIM(), 4, Last(0)), r"Last\(0\), but"),
        (lambda: Rollout(DDIM(), 2, Surrogate(3)), r"Surrogate\(3\), but"),
        (lambda: Rollout(DDIM(), 2, RandomLast(3)), r"RandomLast\(3\), but"),
        (lambda: Rollout(DDIM(), 2, ReFL(3)), r"ReFL\(3\), but"),
        (lambda: FullChain(DDIM(), 0), "steps >= 1"),
        (lambda: ImageLoss(3), "a penalty is a function"),
        (lambda: ImageLoss(penalty, DDIM()), "image must be OneStep"),
        (lambda: ImageLoss(penalty, weighting=0.1), "at which noise levels"),
        (lambda: ImageLoss(penalty, FullChain(), weighting=ALL), "leave weighting out"),
        (lambda: ImageLoss(Paired(lambda a, b: a.flatten(1).mean(1)), FullChain()), "compares with the clean image"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("number", "remedy"), [(3, "Last(3)"), (0, "Last(1)"), (None, "Last(1)"), (Last, "Last(1)")])
@pytest.mark.parametrize("chain", [Rollout, FullChain])
def test_a_number_of_steps_is_answered_with_what_to_write(chain, number, remedy, monkeypatch):
    """Also in a config. The suite's own check of types is off: it would refuse the number first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    got = "the class Last" if number is Last else repr(number)
    message = f"got {got}: write {remedy} or AllSteps()"
    with pytest.raises(ValueError, match=re.escape(message)):
        chain(DDIM(), 4, number)
    if number is not Last:
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            evaluate(f"{chain.__name__}(ddim, 4, {number})", OF_TERMS)
        assert "\n" not in str(caught.value)


def test_uniform_weight_is_warned_about():
    with pytest.warns(UserWarning, match="blurred mean"):
        ImageLoss(penalty, OneStep(), weighting=weightings.constant)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: penalty(x).mean(), r'term "smooth": the penalty returned \(\) instead of one value per image'),
        (lambda x: penalty(x).unsqueeze(1), r'term "smooth": the penalty returned \(3, 1\)'),
        (lambda x: 1.0, 'term "smooth": the penalty returned float'),
        (lambda x: penalty(x.detach()), 'term "smooth": the penalty has no gradient'),
        (lambda x: (x > 0).double().flatten(1).mean(1), 'term "smooth": the penalty has no gradient'),
    ],
)
def test_a_bad_penalty_is_named(bad, message):
    denoiser, _, x0 = make(OneStep())
    objective = Objective(denoiser, {"smooth": Term(ImageLoss(bad))})
    with pytest.raises(ValueError, match=message):
        objective(x0)


def test_a_paired_penalty_sees_the_decoded_clean_image():
    denoiser, objective, x0 = make(OneStep())
    loss = ImageLoss(Paired(lambda a, b: ((a - b) ** 2).flatten(1).mean(1)), weighting=ALL, decode=lambda x: 3 * x)
    draw = objective.draw(x0, step=0)
    close(loss(denoiser, draw), 9 * ((draw.prediction.x0 - x0) ** 2).flatten(1).mean(1))
