"""Steering against closed forms: of Gaussian data and measurements the posterior is Gaussian, and its denoiser is known."""

import math
from itertools import pairwise

import pytest
import torch

from oracles import SCHEDULES, SHAPE, TARGETS, GaussianData, exact
from xhat import DDIM, DDPM, X0, Denoiser, FullChain, V, generate, sample, uniform_times
from xhat.data.shape import DataShape
from xhat.errors import DataError
from xhat.sampling.sample import chain_of
from xhat.sampling.samplers import DPMSolver2M, Euler, Heun, Leapfrog
from xhat.sampling.steering import DPS, MMPS, MPGD, Blur, Hide, Linear, PiGDM, RePaint, Shrink, guided_by, root

DATA = GaussianData(0.3, 0.5)
Y = torch.tensor([[[[0.9, -0.4], [0.2, 0.0]]]], dtype=torch.float64)
MASK = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]], dtype=torch.float64)


def masked(x):
    return MASK * x


def mean_of_rows(x):
    """A x is the mean of each row, written in both of its pixels."""
    return x.mean(-1, keepdim=True).expand_as(x)


def sum_to_first(x):
    return torch.cat([x.sum(-1, keepdim=True), torch.zeros_like(x[..., 1:])], dim=-1)


OPERATORS = {"mask": masked, "rows": mean_of_rows, "sums": sum_to_first}


def matrix(operator):
    """A, (4, 4)."""
    return torch.stack([operator(e.reshape(1, *SHAPE)).flatten() for e in torch.eye(4, dtype=torch.float64)], dim=1)


def posterior_mean(z, alpha, sigma, operator, y, noise):
    """E[x0 | z, y] of the Gaussian data, by its precision matrix."""
    a = matrix(operator)
    precision = torch.eye(4, dtype=torch.float64) * (1 / DATA.std**2 + alpha**2 / sigma**2) + a.T @ a / noise**2
    right = DATA.mean / DATA.std**2 + alpha * z.flatten(1) / sigma**2 + (a.T @ y.flatten()) / noise**2
    return torch.linalg.solve(precision, right.T).T.reshape(z.shape)


def predicted(steering, denoiser, z, t):
    """What a sampler sees: x0_hat and noise_hat."""
    seen = []

    class Looking(Euler):
        def step(self, model, z, t, s, noise, state):
            p = model(z, t)
            seen.extend([p.x0, p.noise])
            return z, state

    steering.around(Looking()).step(denoiser.given(None), z, t, 0 * t, z, ())
    return seen


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "linear_beta"])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_mmps_is_the_posterior_of_gaussian_data(operator, name, noise, rng):
    schedule = SCHEDULES[name]()
    denoiser, z = exact(DATA, schedule, V), torch.randn(5, *SHAPE, dtype=torch.float64, generator=rng)
    how = MMPS(Linear(OPERATORS[operator], Y, noise), iterations=4)
    for t in (0.2, 0.5, 0.9):
        t = torch.full((5,), t, dtype=torch.float64)
        alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
        x0, of_noise = predicted(how, denoiser, z, t)
        want = posterior_mean(z, alpha, sigma, OPERATORS[operator], Y, noise)
        torch.testing.assert_close(x0, want, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(alpha * x0 + sigma * of_noise, z)


@pytest.mark.parametrize("operator", OPERATORS)
def test_pigdm_is_where_pixels_are_independent(operator, rng):
    schedule = SCHEDULES["cosine"]()
    denoiser, z = exact(DATA, schedule, V), torch.randn(5, *SHAPE, dtype=torch.float64, generator=rng)
    t = torch.full((5,), 0.4, dtype=torch.float64)
    own = Linear(OPERATORS[operator], Y, 0.3)
    a, b = (predicted(how, denoiser, z, t)[0] for how in (PiGDM(own, DATA.std), MMPS(own, 4)))
    torch.testing.assert_close(a, b)
    other = predicted(PiGDM(own, 1.0), denoiser, z, t)[0]
    assert not torch.allclose(a, other, rtol=1e-2)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_it_moves_x0_alike_in_every_target(target, rng):
    schedule = SCHEDULES["cosine"]()
    z, t = torch.randn(5, *SHAPE, dtype=torch.float64, generator=rng), torch.full((5,), 0.6, dtype=torch.float64)
    how = MMPS(Linear(masked, Y, 0.2), 4)
    x0, noise = predicted(how, exact(DATA, schedule, target), z, t)
    want, of_noise = predicted(how, exact(DATA, schedule, V), z, t)
    torch.testing.assert_close(x0, want)
    torch.testing.assert_close(noise, of_noise)


def moments(denoiser, sampler, steps):
    """Mean (4,) and covariance (4, 4) of a sampler's samples where each step is affine: from where z and each noise go."""
    noises = steps if sampler.stochastic else 0
    rows, eye = 1 + 4 * (1 + noises), torch.eye(4, dtype=torch.float64)

    def only(k):
        x = torch.zeros(rows, 4, dtype=torch.float64)
        x[1 + 4 * k : 5 + 4 * k] = eye
        return x.reshape(rows, *SHAPE)

    z, times = denoiser.schedule.prior_std() * only(0), uniform_times(denoiser.schedule, steps)
    end, _ = chain_of(denoiser, sampler, z, times, noise=lambda i: only(1 + i)).run()
    mean, *ends = end.flatten(1)
    ways = torch.stack(ends) - mean
    return mean, ways.T @ ways


def limit(found):
    """Of what was found at n, 2n, 4n, ... steps, by Richardson's extrapolation in 1/n, 1/n², ..."""
    power = 1
    while len(found) > 1:
        found = [(2**power * b - a) / (2**power - 1) for a, b in pairwise(found)]
        power += 1
    return found[0]


@pytest.mark.parametrize(
    ("sampler", "name", "how", "steps"),
    [
        (Heun(), "flow", MMPS(Linear(mean_of_rows, Y, 0.2), 2), (20, 40, 80)),
        (DPMSolver2M(), "flow", MMPS(Linear(mean_of_rows, Y, 0.2), 2), (50, 100, 200)),
        (DDIM(), "cosine", MMPS(Linear(mean_of_rows, Y, 0.2), 2), (40, 80, 160)),
        (DDPM(), "flow", MMPS(Linear(mean_of_rows, Y, 0.2), 2), (30, 60, 120, 240)),
        (DDIM(), "cosine", PiGDM(Linear(masked, Y, 0.2), DATA.std, 2), (40, 80, 160)),
    ],
    ids=["heun", "dpm-solver", "ddim", "ddpm", "ddim, pigdm"],
)
def test_samples_have_the_posteriors_moments(sampler, name, how, steps):
    """In the limit of many steps, to a thousandth of the posterior's standard deviations and variances."""
    denoiser, a = exact(DATA, SCHEDULES[name](), V), matrix(how.measurement.operator)
    found = [moments(denoiser, how.around(sampler), n) for n in steps]
    mean, covariance = (limit(list(each)) for each in zip(*found, strict=True))
    want = torch.linalg.inv(torch.eye(4, dtype=torch.float64) / DATA.std**2 + a.T @ a / 0.2**2)
    std = want.diagonal().sqrt()
    assert float(((mean - want @ (DATA.mean / DATA.std**2 + a.T @ Y.flatten() / 0.2**2)) / std).abs().max()) < 1e-3
    assert float(((covariance - want) / torch.outer(std, std)).abs().max()) < 1e-3


def test_a_measurement_without_noise_is_met(rng):
    schedule = SCHEDULES["flow"]()  # which ends without noise
    denoiser, z = exact(DATA, schedule, V), torch.randn(3, *SHAPE, dtype=torch.float64, generator=rng)
    for how in (MMPS(Linear(mean_of_rows, mean_of_rows(Y)), 4), PiGDM(Linear(masked, Y), DATA.std)):
        found = sample(denoiser, how.around(DDIM()), z, uniform_times(schedule, 40))
        own = how.measurement
        assert float((own.operator(found) - own.operator(Y)).abs().max()) < 1e-6


@pytest.mark.parametrize("sampler", [Euler(), Heun(), DPMSolver2M(), Leapfrog(), DDPM(), DDIM(0.5)], ids=str)
def test_dps_goes_down_the_penaltys_gradient_after_each_step(sampler, rng):
    schedule = SCHEDULES["cosine"]()
    denoiser, z = exact(DATA, schedule, V), torch.randn(3, *SHAPE, dtype=torch.float64, generator=rng)
    t, s = (torch.full((3,), v, dtype=torch.float64) for v in (0.6, 0.5))
    noise = torch.randn(z.shape, generator=rng, dtype=z.dtype)
    penalty = Linear(masked, Y)
    plain, _ = sampler.step(denoiser.given(None), z, t, s, noise, sampler.init(z))
    found, _ = DPS(penalty, 0.3).around(sampler).step(denoiser.given(None), z, t, s, noise, sampler.init(z))
    at = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(penalty(denoiser(at, t).x0).sum(), at)
    torch.testing.assert_close(found, plain - 0.3 * slope)
    assert not found.requires_grad


def test_the_root_of_a_penalty_is_a_distance(rng):
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=rng).requires_grad_()
    value = root(lambda x: x.flatten(1).square().sum(1))(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    nothing = torch.zeros(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(root(lambda x: x.flatten(1).square().sum(1))(nothing).sum(), nothing)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_mpgd_moves_x0_by_the_variance_around_z(rng):
    schedule = SCHEDULES["cosine"]()
    denoiser, z = exact(DATA, schedule, V), torch.randn(3, *SHAPE, dtype=torch.float64, generator=rng)
    penalty = Linear(masked, Y)
    for number, most in ((0.3, 1.0), (0.9, 1.0), (0.3, 100.0)):
        t = torch.full((3,), number, dtype=torch.float64)
        x0 = denoiser(z, t).x0
        slope = -MASK * (Y - x0)
        variance = min(most, float((schedule.sigma(t[0]) / schedule.alpha(t[0])) ** 2))
        torch.testing.assert_close(predicted(MPGD(penalty, 0.5, most), denoiser, z, t)[0], x0 - 0.5 * variance * slope)


@pytest.mark.parametrize("mask", [MASK, masked, MASK.expand(2000, *SHAPE)], ids=["mask", "operator", "rows"])
@pytest.mark.parametrize("sampler", [DDPM(), DDIM()], ids=str)
def test_repaint_keeps_what_is_known_and_draws_the_rest(sampler, mask):
    """Of independent pixels the free ones are not told anything by the known ones: they keep the data's moments.

    The error of few steps, which the sampler has without it, too, is taken out by Richardson's extrapolation.
    """
    schedule, n, stds = SCHEDULES["cosine"](), 2000, []
    denoiser = exact(DATA, schedule, V)
    for steps in (60, 120):
        generator = torch.Generator().manual_seed(0)
        z = denoiser.schedule.prior_std() * torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator)
        found = sample(denoiser, RePaint(Y, mask, 2).around(sampler), z, uniform_times(schedule, steps), generator=generator)
        assert torch.equal(found[:, :, 0], Y[:, :, 0].expand_as(found[:, :, 0]))
        free = found[:, :, 1].flatten(1)
        assert float(free.mean()) == pytest.approx(DATA.mean, abs=4 * DATA.std / math.sqrt(2 * n))
        stds.append(float(free.std()))
    assert 2 * stds[1] - stds[0] == pytest.approx(DATA.std, rel=0.04)


def test_repaint_draws_what_the_known_pixels_say():
    """Both pixels of each row are nearly equal in these data: the free one follows the known one, once it has been repeated."""
    schedule, n, near = SCHEDULES["cosine"](), 2000, 0.1

    class Pairs(torch.nn.Module):
        """E[x0 | z] of rows (a, a + b), a ~ N(0, 1), b ~ N(0, near²), by the covariance of a row."""

        def forward(self, z, t):
            alpha, sigma = schedule.alpha(t[0].double()), schedule.sigma(t[0].double())
            row = torch.tensor([[1.0, 1.0], [1.0, 1.0 + near**2]], dtype=z.dtype)
            gain = alpha * row @ torch.linalg.inv(alpha**2 * row + sigma**2 * torch.eye(2, dtype=z.dtype))
            return z @ gain.T

    denoiser, generator = Denoiser(Pairs(), schedule, X0), torch.Generator().manual_seed(0)
    z = torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator)
    left = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]], dtype=torch.float64)
    found = sample(denoiser, RePaint(Y, left, 4).around(DDPM()), z, uniform_times(schedule, 60), generator=generator)
    free = found[..., 1]
    want = Y[..., 0]
    torch.testing.assert_close(free.mean(0), want[0], rtol=0, atol=0.03)
    assert float((free - want).std()) == pytest.approx(near, rel=0.35)
    once = sample(denoiser, RePaint(Y, left, 1).around(DDPM()), z, uniform_times(schedule, 60), generator=generator)
    assert float((once[..., 1] - want).square().mean()) > float((free - want).square().mean())


@pytest.mark.parametrize("operator", [Hide((0, 2), (1, 3)), Hide(rows=(1, 2)), Shrink(2), Blur(0.6)], ids=str)
def test_operators_are_linear_and_keep_constants(operator, rng):
    a, b = (torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=rng) for _ in range(2))
    torch.testing.assert_close(operator(2 * a - 3 * b), 2 * operator(a) - 3 * operator(b))
    if not isinstance(operator, Hide):
        torch.testing.assert_close(operator(torch.ones_like(a)), torch.ones_like(operator(a)))


def test_operators_do_what_they_say(rng):
    x = torch.randn(1, 1, 4, 6, dtype=torch.float64, generator=rng)
    hidden = Hide((0, 2), (1, 3))(x)
    assert torch.equal(hidden[..., 0:2, 1:3], torch.zeros(1, 1, 2, 2, dtype=x.dtype))
    assert torch.equal(hidden[..., 2:, :], x[..., 2:, :])
    torch.testing.assert_close(Shrink(2)(x)[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    spike = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    spike[..., 10, 10] = 1
    blurred, at = Blur(1.5)(spike)[0, 0], torch.arange(21, dtype=torch.float64) - 10
    assert float(blurred.sum()) == pytest.approx(1)
    assert float((blurred.sum(0) * at**2).sum()) == pytest.approx(1.5**2, rel=0.03)  # cut off at three deviations


@pytest.mark.parametrize(
    "steering",
    [
        MMPS(Linear(Hide(rows=(1, 2)), torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, *SHAPE))),
        PiGDM(Linear(Hide(rows=(1, 2)), torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, *SHAPE))),
        DPS(root(Linear(Hide(rows=(1, 2)), torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, *SHAPE)))),
        MPGD(Linear(Hide(rows=(1, 2)), torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, *SHAPE)), 0.9),
        RePaint(torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, *SHAPE), MASK.expand(3, *SHAPE)),
    ],
    ids=lambda how: type(how).__name__,
)
def test_each_sample_is_steered_to_what_is_its_own(steering):
    """In batches of any size, in turn where there are more samples than measurements."""
    denoiser = exact(DATA, SCHEDULES["cosine"](), V)
    sampler, times = steering.around(DDPM()), uniform_times(denoiser.schedule, 4)
    shape = DataShape(1, 2, None, range=None)
    together, _ = generate(denoiser, sampler, shape, 6, times=times, batch=6)
    apart, _ = generate(denoiser, sampler, shape, 6, times=times, batch=2)
    torch.testing.assert_close(together, apart)
    means = together[:, 0, 0].mean(1)
    assert float((means[[2, 5]] - means[[0, 3]]).mean()) > 0.2


def test_nothing_is_trained_through_a_steered_sampler():
    with pytest.raises(ValueError, match="no gradient passes through"):
        FullChain(guided_by(lambda x: x.flatten(1).sum(1)))


def test_the_network_gets_no_gradient_and_keeps_its_flags():
    net = torch.nn.Conv2d(1, 1, 1).double()
    denoiser = Denoiser(_Alone(net), SCHEDULES["cosine"](), V)
    z = torch.randn(2, *SHAPE, dtype=torch.float64)
    for how in (MMPS(Linear(masked, Y)), PiGDM(Linear(masked, Y)), DPS(Linear(masked, Y)), MPGD(Linear(masked, Y))):
        found = sample(denoiser, how.around(DDIM()), z, uniform_times(denoiser.schedule, 2))
        assert not found.requires_grad
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


class _Alone(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z, t):
        return self.net(z)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="noise is a standard deviation"):
        Linear(masked, Y, -1.0)
    with pytest.raises(ValueError, match="once or more"):
        RePaint(Y, MASK, 0)
    for way in (MMPS, PiGDM):
        with pytest.raises(ValueError, match="1 iteration or more"):
            way(Linear(masked, Y), iterations=0)
    with pytest.raises(ValueError, match="repeats"):
        RePaint(Y, MASK, 100_000)
    with pytest.raises(ValueError, match="MMPS has its own scale"):
        guided_by(MMPS(Linear(masked, Y)), 0.5)
    with pytest.raises(DataError, match="a row for each sample"):
        Linear(masked, Y.expand(2, *SHAPE))(torch.zeros(3, *SHAPE))
    for wrong in (lambda: Shrink(1), lambda: Blur(0.0), Hide, lambda: Hide(rows=(3, 3))):
        with pytest.raises(ValueError, match=r"shrink makes|above 0 pixels|hide"):
            wrong()
    for operator in (Shrink(3), Blur(1.0)):
        with pytest.raises(DataError, match=r"does not divide|reaches 3 pixels"):
            operator(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="one noise a step"):
        RePaint(Y, MASK).around(RePaint(Y, MASK).around(DDIM()))
