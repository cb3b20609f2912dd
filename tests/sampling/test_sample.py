"""The loop: gradients through the chain, noise, refusals, and where it starts."""

import math
from inspect import unwrap

import pytest
import torch

import xhat
from oracles import EVERY, SCHEDULES, SHAPE, Constant, GaussianData, ScaledX0, exact
from xhat import DDIM, DDPM, Denoiser, Last, RandomLast, V, sample, uniform_times
from xhat.sampling.differentiate import AllSteps


def close(a, b, rtol=1e-9, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture
def z(rng):
    return torch.randn(4, *SHAPE, dtype=torch.float64, generator=rng)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chain(name, schedule="linear_beta", target=V):
    on = SCHEDULES[schedule]()
    denoiser = Denoiser(ScaledX0(on, target, 0.4), on, target)
    return denoiser, EVERY[name], torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("schedule", ["linear_beta", "flow", "ve"])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.trap(27)
def test_gradient_through_the_entire_chain_by_finite_differences(name, schedule, z):
    """d/dscale and the directional derivative in z of a function of the sample, with differentiate=AllSteps()."""
    denoiser, sampler, times = chain(name, schedule)
    scale, direction = denoiser.net.scale, torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(z.shape)

    def value(start):
        return sample(denoiser, sampler, start, times, differentiate=AllSteps(), generator=seeded()).sin().sum()

    start = z.clone().requires_grad_()
    by_scale, by_start = torch.autograd.grad(value(start), (scale, start))
    h = 1e-6
    with torch.no_grad():
        along = (value(z + h * direction) - value(z - h * direction)) / (2 * h)
        scale += h
        up = value(z)
        scale -= 2 * h
        down = value(z)
        scale += h
    assert by_scale.item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-6)
    assert (by_start * direction).sum().item() == pytest.approx(along.item(), rel=1e-6, abs=1e-8)


def by_hand(denoiser, sampler, z, times, differentiated, generator):
    """The loop written out, detached before the last `differentiated` steps."""
    state, steps = sampler.init(z), len(times) - 1
    for i in range(steps):
        if i == steps - differentiated:
            z, state = z.detach(), tuple(x.detach() for x in state)
        t, s = times[i].expand(len(z)), times[i + 1].expand(len(z))
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype) if sampler.stochastic else z
        z, state = sampler.step(denoiser.given(None), z, t, s, noise, state)
    return z


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.trap(27)
def test_the_last_k_steps_are_differentiated(name, steps, z):
    denoiser, sampler, times = chain(name)
    expected = by_hand(denoiser, sampler, z, times, steps, seeded())
    got = sample(denoiser, sampler, z, times, differentiate=Last(steps), generator=seeded())
    close(got, expected, rtol=0, atol=0)
    gradients = [torch.autograd.grad(x.square().sum(), denoiser.net.scale)[0] for x in (got, expected)]
    close(gradients[0], gradients[1], rtol=1e-12)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.trap(27)
def test_checkpointing_changes_nothing(name, z):
    """Not even for stochastic rules: the recomputation sees the same noise."""
    denoiser, sampler, times = chain(name)
    results = []
    for checkpoint in (True, False):
        x = sample(denoiser, sampler, z, times, differentiate=Last(3), checkpoint=checkpoint, generator=seeded())
        results.append((x.detach(), *torch.autograd.grad(x.square().sum(), denoiser.net.scale)))
    close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_no_gradient_by_default_and_none_under_no_grad(name, z):
    denoiser, sampler, times = chain(name)
    assert not sample(denoiser, sampler, z, times, generator=seeded()).requires_grad
    with torch.no_grad():
        assert not sample(denoiser, sampler, z, times, differentiate=AllSteps(), generator=seeded()).requires_grad


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"times": torch.tensor([0.5])}, "two entries"),
        ({"times": torch.tensor([0.2, 0.5])}, "decrease"),
        ({"times": torch.tensor([0.5, 0.5, 0.2])}, "decrease"),
        ({"times": torch.tensor([0.5, float("nan"), 0.2])}, "decrease"),
        ({"differentiate": Last(5)}, "4 steps"),
        ({"differentiate": Last(-1)}, "4 steps"),
        ({"differentiate": 2}, r"write Last\(2\) or AllSteps"),
        ({"differentiate": 0}, r"write Last\(1\) or AllSteps"),
        ({"differentiate": RandomLast(2)}, "generator"),
        ({"sampler": DDPM()}, "generator"),
        ({"sampler": DDIM(eta=0.1)}, "generator"),
    ],
    ids=str,
)
def test_bad_calls_are_refused_with_the_way_out(kwargs, match, z):
    denoiser, sampler, times = chain("ddim")
    with pytest.raises(ValueError, match=match):
        # unwrapped: the suite's own check of types would refuse a number first
        unwrap(sample)(**{"denoiser": denoiser, "sampler": sampler, "z": z, "times": times, **kwargs})


def test_callback_sees_every_step_and_the_start_is_left_alone(z):
    denoiser, sampler, times = chain("2m")
    seen, before = [], z.clone()
    out = sample(denoiser, sampler, z, times, callback=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1][1], out)
    close(seen[0][1], sample(denoiser, sampler, z, times[:2]))
    assert torch.equal(z, before)


class _Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.embed = torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(1, 1)

    def forward(self, z, t):
        return self.conv(z) + self.embed(t.unsqueeze(1)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("schedule", ["cosine", "flow", "linear_beta", "ve"])
@pytest.mark.parametrize("name", EVERY)
def test_float32_networks_sample_float32_images_on_float64_times(name, schedule):
    schedule = SCHEDULES[schedule]()
    denoiser = Denoiser(_Conv(), schedule, xhat.targets.edm(0.5))
    start = xhat.sampling.sample.prior(denoiser, (2, *SHAPE), seeded())
    x = sample(denoiser, EVERY[name], start, uniform_times(schedule, 6), differentiate=Last(2), generator=seeded())
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("schedule", ["cosine", "ve", "flow", "linear_beta"])
def test_prior_has_the_scale_of_unit_data_at_the_schedules_end(schedule):
    schedule = SCHEDULES[schedule]()
    denoiser = Denoiser(Constant(torch.zeros(1, *SHAPE)), schedule, xhat.targets.edm(0.5))
    x = xhat.sampling.sample.prior(denoiser, (1000, *SHAPE), seeded())
    scale = math.sqrt(float(schedule.alpha(torch.ones(1))) ** 2 + float(schedule.sigma(torch.ones(1))) ** 2)
    close(x, scale * torch.randn(1000, *SHAPE, generator=seeded()), rtol=1e-6)


@pytest.mark.trap(31)
@pytest.mark.parametrize("sampler", [DDIM(), DDPM()], ids=["ddim", "ddpm"])
def test_a_table_that_keeps_signal_samples_unit_data_exactly(sampler):
    """alpha_bar_T = 0.36: N(0, 1) data end at N(0, 1) there, and start there in `prior`, `generate` and `FullChain` alike."""
    schedule = xhat.Discrete.linear_beta(100)
    denoiser = exact(GaussianData(mean=0.0, std=1.0), schedule, variance=xhat.variances.FORWARD)
    x = sample(
        denoiser,
        sampler,
        xhat.sampling.sample.prior(denoiser, (20_000, *SHAPE), seeded()).double(),
        uniform_times(schedule, 100),
        generator=seeded(3),
    )
    assert x.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * x.numel()) + 1e-3)
    x0 = torch.zeros(500, *SHAPE, dtype=torch.float64)
    draw = xhat.Objective(denoiser, {"d": xhat.Term(xhat.Denoising())}).draw(x0, step=0)
    chain = xhat.FullChain(DDIM(), 10, AllSteps())
    assert chain.start(denoiser, draw).std().item() == pytest.approx(1, abs=0.1)
    assert chain(denoiser, draw).std().item() == pytest.approx(1, abs=0.1)
