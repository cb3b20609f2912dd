"""Every term's randomness is a function of (seed, purpose, step, sample): shards and micro-batches change nothing."""

from dataclasses import replace

import pytest
import torch

import xhat
from oracles import ScaledX0
from xhat import (
    DDIM,
    DDPM,
    AdjointMatching,
    Denoiser,
    Denoising,
    FullChain,
    Hybrid,
    ImageLoss,
    Increment,
    Last,
    Objective,
    RandomLast,
    ReFL,
    Rollout,
    Shard,
    Surrogate,
    Term,
    VariationalBound,
)
from xhat.diffusion.variances import LEARNED
from xhat.losses.balanced import BalancedLevels
from xhat.losses.contrast import Contrastive
from xhat.losses.near import Near
from xhat.losses.penalties import total_variation
from xhat.losses.reference import OnOthers, ToReference, TrajectoryKL
from xhat.losses.rewards import BoundLikelihood, ForwardContrast, PolicyGradient, StepLikelihood
from xhat.losses.rewards.policy import FromSamples
from xhat.losses.variational import ScheduleVariance
from xhat.sampling.differentiate import AllSteps, Bridge, DRTune, Lagrange, LeapAlign, LowVariance

CONTINUOUS, GRID = xhat.schedules.LinearLogSNR, lambda: xhat.Discrete.linear_beta(20, 1e-3, 0.2)


def image(estimate):
    return lambda: ImageLoss(total_variation, estimate)


def reference():
    """Another model on the same noise levels."""
    schedule = CONTINUOUS()
    other = Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    return other


LOSSES = {
    "denoising": (CONTINUOUS, Denoising),
    "balanced": (CONTINUOUS, lambda: BalancedLevels(Denoising())),
    "uncertainty": (CONTINUOUS, lambda: xhat.LearnedUncertainty(Denoising())),
    "bound": (CONTINUOUS, VariationalBound),
    "bound on a grid": (GRID, VariationalBound),
    "hybrid": (GRID, lambda: Hybrid(learns=xhat.losses.variational.everything)),
    "schedule variance": (lambda: xhat.schedules.Learned(features=4).double(), ScheduleVariance),
    "increment": (GRID, Increment),
    "one step": (CONTINUOUS, image(xhat.OneStep())),
    "rollout": (CONTINUOUS, image(Rollout(DDIM(eta=0.5), 3, AllSteps()))),
    "chain": (CONTINUOUS, image(FullChain(DDIM(), 3, AllSteps()))),
    "stochastic chain": (CONTINUOUS, image(FullChain(DDPM(), 3, Last(2)))),
    "random last": (CONTINUOUS, image(FullChain(DDIM(eta=1.0), 3, RandomLast(2)))),
    "surrogate": (CONTINUOUS, image(FullChain(DDIM(eta=1.0), 3, Surrogate(1)))),
    "low variance": (CONTINUOUS, image(FullChain(DDPM(), 3, LowVariance(2)))),
    "drtune": (CONTINUOUS, image(FullChain(DDIM(eta=1.0), 3, DRTune(1, among=2)))),
    "leaps": (CONTINUOUS, image(FullChain(DDIM(eta=1.0), 3, LeapAlign()))),
    "lagrange": (CONTINUOUS, image(FullChain(DDIM(eta=1.0), 4, Lagrange(2)))),
    "bridge": (CONTINUOUS, image(FullChain(DDIM(eta=1.0), 3, Bridge(2)))),
    "leaps of a rollout": (CONTINUOUS, image(Rollout(DDIM(eta=1.0), 3, LeapAlign()))),
    "low variance of a rollout": (CONTINUOUS, image(Rollout(DDIM(eta=1.0), 3, LowVariance(1)))),
    "adjoint matching": (CONTINUOUS, lambda: AdjointMatching(image(FullChain(DDPM(), 3))(), reference(), steps=2)),
    "to reference": (CONTINUOUS, lambda: ToReference(reference())),
    "to reference along a chain": (CONTINUOUS, lambda: ToReference(reference(), along=FullChain(DDIM(eta=1.0), 3))),
    "trajectories": (CONTINUOUS, lambda: TrajectoryKL(reference(), FullChain(DDPM(), 3, AllSteps()))),
    "some steps of trajectories": (CONTINUOUS, lambda: TrajectoryKL(reference(), FullChain(DDPM(), 3, Surrogate(1)))),
    "on others": (CONTINUOUS, lambda: OnOthers(Denoising())),
    "refl": (CONTINUOUS, image(FullChain(DDIM(eta=1.0), 3, ReFL(2)))),
}


def brightness(images):
    return images.flatten(1).mean(1)


GROUPED = {
    "policy gradient by steps": (
        CONTINUOUS,
        lambda: PolicyGradient(brightness, StepLikelihood(2), FullChain(DDPM(), 3), group=4),
    ),
    "policy gradient by the bound": (
        CONTINUOUS,
        lambda: PolicyGradient(brightness, BoundLikelihood(2), FullChain(DDIM(), 3), group=4),
    ),
    "neighbours": (CONTINUOUS, lambda: Contrastive(Denoising())),
    "contrast": (CONTINUOUS, lambda: ForwardContrast(brightness, reference(), FullChain(DDIM(), 3), group=4)),
}
"""Losses that compare samples in groups of four, or with their neighbours, which no part may cut."""
ALL = LOSSES | GROUPED


@pytest.mark.parametrize("name", ALL)
def test_each_images_value_is_the_same_whatever_part_of_the_batch_it_comes_in(name):
    make, loss = ALL[name]
    schedule = make()
    objective = Objective(Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V), {"x": Term(loss())})
    own = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (40, 1, 2, 2), generator=own).double() * 2 / 255 - 1  # more than a block of noise

    def values(*cuts):
        parts, first = [], 0
        for part in x0.tensor_split(cuts):
            draw = objective.draw(part, step=3, shard=Shard(first, len(x0)), extra={"prior": part / 2})
            parts.append(objective.per_image("x", draw).detach())
            first += len(part)
        return torch.cat(parts)

    whole = values()
    assert whole.std() > 0
    for cuts in (
        (20,),
        (8, 32) if name in GROUPED else (7, 33),
    ):  # alpha and sigma are float32, whose last bit depends on the place in a vector register
        torch.testing.assert_close(values(*cuts), whole, rtol=5e-6, atol=1e-7)


def test_a_terms_own_noise_is_another_for_each_seed_purpose_step_and_number():
    schedule, x0 = CONTINUOUS(), torch.zeros(2, 1, 2, 2).double()

    def drawn(seed=0, step=3):
        denoiser = Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
        return Objective(denoiser, {"x": Term(Denoising())}, seed=seed).draw(x0, step=step)

    own = drawn()
    others = [own.normal("b"), own.normal("a", 1), drawn(seed=1).normal("a"), drawn(step=4).normal("a"), own.noise]
    assert torch.equal(own.normal("a"), drawn().normal("a"))
    assert all((other != own.normal("a")).all() for other in others)
    numbers = [own.uniform(3, "b"), drawn(seed=1).uniform(3, "a"), drawn(step=4).uniform(3, "a")]
    assert all((other != own.uniform(3, "a")).all() for other in numbers)


@pytest.mark.parametrize(
    "name",
    sorted(set(ALL) - {"denoising", "balanced", "neighbours", "uncertainty", "one step", "schedule variance", "to reference"}),
)
def test_a_loss_with_draws_of_its_own_takes_others_at_another_step(name):
    """Same x0, t, noise and prediction: only the step differs. On a grid the bound draws nothing beside the shared noise."""
    make, loss = ALL[name]
    schedule = make()
    objective = Objective(Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V), {"x": Term(loss())})
    x0 = torch.randint(0, 256, (40, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double() * 2 / 255 - 1
    draw = objective.draw(x0, step=3, extra={"prior": x0 / 2})
    here, there = (objective.per_image("x", replace(draw, step=step)) for step in (3, 4))
    assert torch.equal(here, there) == (name in ("bound on a grid", "hybrid"))


def test_no_loss_of_the_library_is_forgotten():
    """Whoever adds a loss adds it above."""

    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    known = {k for k in below(xhat.Loss) if k.__module__.startswith("xhat.")} - {
        xhat.Loss,
        Near,
        FromSamples,
    }  # which are no losses
    assert known == {type(make()) for _, make in ALL.values()}


def test_learned_variance_draws_the_same_too():
    schedule = GRID()

    class Two(torch.nn.Module):
        def forward(self, z, t):
            return torch.cat([0.5 * z, 0.1 * z], dim=1)

    objective = Objective(Denoiser(Two(), schedule, xhat.V, variance=LEARNED), {"x": Term(Hybrid())})
    x0 = torch.zeros(6, 1, 2, 2).double() + 1 / 255
    whole = objective.per_image("x", objective.draw(x0, step=1, shard=Shard(0, 6)))
    half = objective.per_image("x", objective.draw(x0[3:], step=1, shard=Shard(3, 6)))
    torch.testing.assert_close(half, whole[3:])
