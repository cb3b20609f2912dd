"""Adjoint matching: where its loss is 0, a Gaussian's samples have the tilted distribution."""

import pytest
import torch
from torch import nn

from oracles import SHAPE, GaussianData, exact
from xhat import (
    DDIM,
    DDPM,
    AdjointMatching,
    Cosine,
    Denoiser,
    Denoising,
    FullChain,
    ImageLoss,
    Last,
    Objective,
    OneStep,
    Term,
    V,
)
from xhat.diffusion.gaussians import transition
from xhat.sampling.differentiate import AllSteps
from xhat.sampling.spacings import uniform_times

N, SLOPE, STRENGTH = 12, 0.7, 1.5
SAMPLERS = [DDPM(), DDIM(1.0), DDIM(0.5)]


def linear(images):
    return SLOPE * images.flatten(1).sum(1)


class Shifted(nn.Module):
    """The exact network of Gaussian data, with a number added at the time of each step."""

    def __init__(self, net, times):
        super().__init__()
        self.net = net
        self.register_buffer("times", times)
        self.shift = nn.Parameter(torch.zeros(N, dtype=torch.float64))

    def forward(self, z, t):
        step = (self.times[None] - t[:, None].double()).abs().argmin(1)
        return self.net(z, t) + self.shift[step].reshape(-1, 1, 1, 1)


def made(sampler, penalty=linear, steps=N, strength=STRENGTH):
    schedule = Cosine(-8.0, 8.0)
    reference = exact(GaussianData(), schedule, V)
    times = uniform_times(schedule, N)
    model = Denoiser(Shifted(exact(GaussianData(), schedule, V).net, times[:-1]), schedule, V)
    loss = AdjointMatching(ImageLoss(penalty, FullChain(sampler, N)), reference, strength, steps)
    return Objective(model, {"match": Term(loss)}), reference, times


def noises(z, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, *z.shape, dtype=z.dtype, generator=generator)


def means(denoiser, sampler, times, start, noise):
    """The chain step by step: images, means and variances."""
    z, found = start, []
    for i in range(N):
        t, s = (times[k].expand(len(z)) for k in (i, i + 1))
        p = sampler.transition(denoiser.given(None), z, t, s)
        found.append((z, p.mean, p.log_variance.exp().flatten()[0]))
        z = p.sample(noise[i]) if i < N - 1 else p.mean
    return z, found


def before_last(times):
    """beta-tilde of the step before the last, which is the variance that the last one is given."""
    return transition(Cosine(-8.0, 8.0), times[N - 2], times[N - 1]).posterior_variance


def optimum(objective, reference, sampler, times):
    """The shift that makes each step's mean mu_ref - c² a, by hand: all is linear, a the same for all images."""
    z = torch.zeros(1, *SHAPE, dtype=torch.float64)
    _, found = means(reference, sampler, times, z, torch.zeros(N, *z.shape, dtype=torch.float64))
    variance = [v for _, _, v in found[:-1]] + [before_last(times)]
    adjoint, wanted = STRENGTH * SLOPE, torch.zeros(N, dtype=torch.float64)
    gains = []
    for i in reversed(range(N)):
        t, s = (times[k].expand(1) for k in (i, i + 1))
        ahead = [sampler.transition(reference.given(None), x, t, s).mean.flatten()[0] for x in (z, z + 1)]
        with torch.no_grad():
            objective.denoiser.net.shift[i] = 1.0
            moved = sampler.transition(objective.denoiser.given(None), z, t, s).mean.flatten()[0] - ahead[0]
            objective.denoiser.net.shift[i] = 0.0
        wanted[i] = -variance[i] * adjoint / moved
        gains.append((variance[i], adjoint / (STRENGTH * SLOPE)))
        adjoint = adjoint * (ahead[1] - ahead[0])
    return wanted, sum(v * p**2 for v, p in gains)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
class TestLinear:
    def test_it_is_0_at_the_tilted_model_and_nowhere_else(self, sampler):
        objective, reference, times = made(sampler)
        wanted, _ = optimum(objective, reference, sampler, times)
        shape = (5, *SHAPE)
        with torch.no_grad():
            away = float(objective(shape=shape, step=3)["match"])
            objective.denoiser.net.shift.copy_(wanted)
            assert float(objective(shape=shape, step=3)["match"]) == pytest.approx(0, abs=1e-10 * away)
            objective.denoiser.net.shift[4] += 0.1
            assert float(objective(shape=shape, step=3)["match"]) > 1e-6 * away

    def test_there_the_mean_is_moved_as_the_tilt_says(self, sampler):
        """exp(-strength · slope · x) moves a Gaussian's mean by -strength · slope · variance, of what the noise makes."""
        objective, reference, times = made(sampler)
        wanted, variance = optimum(objective, reference, sampler, times)
        with torch.no_grad():
            objective.denoiser.net.shift.copy_(wanted)
        start = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        noise = noises(start)
        with torch.no_grad():
            moved, plain = (means(d, sampler, times, start, noise)[0] for d in (objective.denoiser, reference))
        torch.testing.assert_close(moved - plain, torch.full_like(plain, float(-STRENGTH * SLOPE * variance)))
        still = means(reference, sampler, times, start, 0 * noise)[0]
        of_noise = torch.zeros((), dtype=torch.float64)
        for i in range(N - 1):
            one = torch.zeros_like(noise)
            one[i] = 1.0
            moved_by = (means(reference, sampler, times, start, one)[0] - still).flatten()[0]
            of_noise = of_noise + moved_by.detach() ** 2
        assert float(variance) == pytest.approx(float(of_noise + before_last(times)))

    def test_its_gradient_is_that_of_its_value(self, sampler):
        """By differences, exact for a parabola, which it is here, where the adjoint does not depend on the images."""
        objective, _, _ = made(sampler)
        shift, shape = objective.denoiser.net.shift, (4, *SHAPE)
        (slope,) = torch.autograd.grad(objective(shape=shape, step=1)["loss"], shift)
        for i in (0, 5, N - 1):
            values = []
            for h in (0.5, -0.5):
                with torch.no_grad():
                    shift[i] += h
                    values.append(float(objective(shape=shape, step=1)["match"]))
                    shift[i] -= h
            assert float(slope[i]) == pytest.approx(values[0] - values[1], rel=1e-3)


def test_random_steps_are_unbiased():
    objective, _, _ = made(DDPM(), steps=3)
    whole, _, _ = made(DDPM())
    shape = (64, *SHAPE)
    few = torch.stack([objective(shape=shape, step=k)["match"].detach() for k in range(200)])
    error = float(few.std()) / 200**0.5
    assert abs(float(few.mean() - whole(shape=shape, step=0)["match"])) < 4 * error


def test_of_the_reference_itself_it_is_what_the_penalty_weighs():
    """½ sum c² a²: mu is mu_ref."""
    objective, reference, times = made(DDPM())
    _, variance = optimum(objective, reference, DDPM(), times)
    pixels = 4
    found = float(objective(shape=(2, *SHAPE), step=0)["match"].detach())
    assert found == pytest.approx(float((STRENGTH * SLOPE) ** 2 * variance * pixels / 2), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageLoss(linear, OneStep()), "an ImageLoss of a chain from pure noise"),
        (lambda: Denoising(), "an ImageLoss of a chain from pure noise"),
        (lambda: ImageLoss(linear, FullChain(DDIM(), N)), "has no noise to match with"),
        (lambda: ImageLoss(linear, FullChain(DDPM(), N, AllSteps())), r"leave AllSteps\(\) out"),
        (lambda: ImageLoss(linear, FullChain(DDPM(), 3)), "needs a chain of so many"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        AdjointMatching(make())
    assert AdjointMatching(ImageLoss(linear, FullChain(DDPM(), N, Last(1)))).steps == 4
