"""Ways to differentiate a chain, through `sample` alone: which steps have a gradient, by hand and by counting."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, SHAPE
from xhat import DDIM, DDPM, Denoiser, Last, RandomLast, ReFL, Surrogate, V, sample, uniform_times
from xhat.config.expressions import evaluate
from xhat.config.names import OF_TERMS
from xhat.errors import ConfigError
from xhat.sampling.chain import Chain
from xhat.sampling.differentiate import AllSteps, NoSteps
from xhat.sampling.samplers import DPMSolver2M, Euler

STEPS = 5


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


class Told(nn.Module):
    """Not linear in z, with a condition, and a memory of the times at which it was called with a gradient."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.seen = []

    def forward(self, z, t, shift):
        if torch.is_grad_enabled():
            self.seen.append(round(float(t[0]), 6))
        return self.w[0] * torch.tanh(z + shift.reshape(-1, 1, 1, 1)) + self.w[1] * z.flip(-1)


@pytest.fixture
def denoiser():
    return Denoiser(Told(), SCHEDULES["flow"](), V)


@pytest.fixture
def z(rng):
    return torch.randn(3, *SHAPE, dtype=torch.float64, generator=rng)


COND = {"shift": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)}


def numbers(value):
    """Uniform numbers that are all the same."""
    return lambda n, purpose: torch.full((n,), value)


def run(denoiser, sampler, z, how, **kwargs):
    times = uniform_times(denoiser.schedule, STEPS)
    return sample(denoiser, sampler, z, times, differentiate=how, cond=COND, checkpoint=False, **kwargs)


def gradient(denoiser, image):
    return torch.autograd.grad(image.sin().sum(), denoiser.net.w)[0]


@pytest.mark.parametrize(
    ("how", "number", "times"),
    [
        (NoSteps(), 0.0, []),
        (AllSteps(), 0.0, [1.0, 0.8, 0.6, 0.4, 0.2]),
        (Last(2), 0.0, [0.4, 0.2]),
        (RandomLast(3), 0.0, [0.2]),
        (RandomLast(3), 0.5, [0.4, 0.2]),
        (RandomLast(3), 0.99, [0.6, 0.4, 0.2]),
        (ReFL(3), 0.0, [0.2]),
        (ReFL(3), 0.99, [0.6]),
        (ReFL(5), 0.99, [1.0]),
    ],
    ids=str,
)
def test_which_calls_have_a_gradient(denoiser, z, how, number, times):
    image = run(denoiser, DDIM(), z, how, uniform=numbers(number))
    assert denoiser.net.seen == times
    assert image.requires_grad == bool(times)


def test_the_surrogate_takes_its_steps_again_where_they_were(denoiser, z):
    """The two smallest numbers choose steps 1 and 3; all others are without gradient."""
    run(denoiser, DPMSolver2M(), z, Surrogate(2), uniform=lambda n, _: torch.tensor([0.9, 0.1, 0.5, 0.2, 0.7]))
    assert denoiser.net.seen == [0.8, 0.4]


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(eta=1.0)], ids=str)
def test_a_step_that_is_taken_again_has_the_noise_that_it_had(denoiser, sampler, z):
    """From a generator, whose numbers come only once: the last step's gradient equals that of `Last(1)` from there."""
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(z.shape, generator=generator, dtype=z.dtype) for _ in range(STEPS)]
    surrogate = run(
        denoiser,
        sampler,
        z,
        Surrogate(1),
        generator=torch.Generator().manual_seed(1),
        uniform=lambda n, _: torch.tensor([0.9, 0.9, 0.9, 0.9, 0.1]),
    )
    truth = run(denoiser, sampler, z, Last(1), noise=lambda i: noise[i])
    close(surrogate, truth)
    close(gradient(denoiser, surrogate), STEPS * gradient(denoiser, truth))


def test_a_random_choice_comes_from_the_generator_where_nothing_else_says(denoiser, z):
    ends = {}
    for seed in range(20):
        denoiser.net.seen.clear()
        run(denoiser, DDIM(), z, RandomLast(3), generator=torch.Generator().manual_seed(seed))
        ends[seed] = len(denoiser.net.seen)
        expected = 1 + int(torch.rand(1, generator=torch.Generator().manual_seed(seed)) * 3)
        assert ends[seed] == expected
    assert set(ends.values()) == {1, 2, 3}


@pytest.mark.parametrize("how", [RandomLast(2), Surrogate(2), ReFL(2)], ids=str)
def test_a_random_choice_without_numbers_is_refused(denoiser, z, how):
    with pytest.raises(ValueError, match=r"pass generator=torch\.Generator"):
        run(denoiser, Euler(), z, how)


def test_recorded_steps_lead_to_the_next_recorded_steps(denoiser, z):
    """Of a rule with a memory: each, taken again, ends where the next one starts, state included."""
    times = uniform_times(denoiser.schedule, STEPS)
    chain = Chain(denoiser.given(COND), DPMSolver2M(), z, times, lambda i: z, numbers(0.0))
    end, steps = chain.run(recorded=range(STEPS))
    assert [step.number for step in steps] == list(range(STEPS))
    for step, after in pairwise(steps):
        again, state = chain.take(step)
        assert torch.equal(again, after.z)
        assert all(torch.equal(a, b) for a, b in zip(state, after.state, strict=True))
    assert torch.equal(chain.take(steps[-1])[0], end)
    assert torch.equal(chain.run(stop=3)[0], steps[3].z)


@pytest.mark.parametrize("how", [NoSteps(), AllSteps(), Last(2), RandomLast(3), Surrogate(2)], ids=str)
def test_the_image_is_the_same_however_it_is_differentiated(denoiser, z, how):
    seen = []
    image = run(denoiser, Euler(), z, how, uniform=numbers(0.5), callback=lambda i, x: seen.append(i))
    close(image.detach(), run(denoiser, Euler(), z, NoSteps()))
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("full_chain(ddim(), 4, all_steps)", AllSteps()),
        ("full_chain(ddim(), 4, last(2))", Last(2)),
        ("rollout(dpm2m(), 3, random_last(2))", RandomLast(2)),
        ("full_chain(ddim, 4, surrogate(2))", Surrogate(2)),
        ("full_chain(ddpm, 4, refl(3))", ReFL(3)),
        ("FullChain(DDIM(), 4, ReFL(3))", ReFL(3)),
    ],
)
def test_a_config_writes_it_as_python_does(text, how):
    assert evaluate(text, OF_TERMS).differentiate == how


@pytest.mark.parametrize(
    ("text", "message"), [("full_chain(ddim, 4, no_steps)", "needs a gradient"), ("last(1.5)", "steps must be a int")]
)
def test_what_has_no_gradient_or_no_count_is_refused_in_a_config(text, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(text, OF_TERMS)
