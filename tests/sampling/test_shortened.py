"""Shortened gradients of chains against closed forms: a network that is linear in z, with a number of its own for each step."""

import itertools

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, SHAPE
from xhat import DDIM, DDPM, FLOW, NOISE, Denoiser, Surrogate, sample, uniform_times
from xhat.sampling.differentiate import AllSteps, Bridge, DRTune, Lagrange, Last, LeapAlign, LowVariance, NoSteps
from xhat.sampling.differentiate.leaps import integrals
from xhat.sampling.samplers import DPMSolver2M, Euler, Heun, straight

N, EULER = 6, Euler()


class Linear(nn.Module):
    """theta_i z at the time of step i."""

    def __init__(self, times):
        super().__init__()
        self.register_buffer("times", times)
        self.theta = nn.Parameter(torch.linspace(-0.6, 0.9, N, dtype=torch.float64))

    def forward(self, z, t):
        step = (self.times[None] - t[:, None].double()).abs().argmin(1)
        return self.theta[step].reshape(-1, 1, 1, 1) * z


def made(name, target=FLOW):
    schedule = SCHEDULES[name]()
    times = uniform_times(schedule, N)
    return Denoiser(Linear(times[:-1]), schedule, target), times


@pytest.fixture
def z(rng):
    return torch.randn(2, *SHAPE, dtype=torch.float64, generator=rng)


def chain(denoiser, times, z, how, sampler=EULER, uniform=None, **kwargs):
    visited = [z]
    end = sample(
        denoiser,
        sampler,
        z,
        times,
        differentiate=how,
        uniform=uniform or (lambda n, _: torch.arange(n) / n),
        callback=lambda _, x: visited.append(x.detach()),
        **kwargs,
    )
    return end, visited


def slopes(denoiser, end):
    """d sum(end)/d theta, (N,)."""
    return torch.autograd.grad(end.sum(), denoiser.net.theta, retain_graph=True)[0]


def choosing(*first, number=0.0):
    """Uniform numbers whose order starts with these steps, and `number` where one is asked for."""

    def uniform(n, purpose):
        if n == 1:
            return torch.tensor([number])
        order = [*first, *(i for i in range(n) if i not in first)]
        return torch.tensor([order.index(i) / n for i in range(n)])

    return uniform


class Straight:
    """What the closed forms are made of, for an end that is summed over the images' pixels."""

    def __init__(self, denoiser, times, visited):
        r, self.u = straight(denoiser.schedule, times)
        self.r, self.theta = r, denoiser.net.theta.detach()
        self.z = torch.stack([x.sum() for x in visited])
        self.h = self.u.diff()

    def direct(self, i):
        """d w_n/d theta_i, later velocities held fixed."""
        return self.h[i] * self.z[i]


@pytest.mark.parametrize("name", ["flow", "cosine", "linear_beta", "ve"])
class TestClosedForms:
    def test_leaps(self, name, z):
        denoiser, times = made(name)
        for k, j in itertools.combinations(range(N), 2):
            end, visited = chain(denoiser, times, z, LeapAlign(0.3, None), uniform=choosing(j, k))
            s = Straight(denoiser, times, visited)
            onward = s.u[N] - s.u[j]
            want = torch.zeros(N, dtype=torch.float64)
            want[k] = (s.u[j] - s.u[k]) * s.z[k] * (1 + 0.3 * onward * s.theta[j] * s.r[j])
            want[j] = onward * s.z[j]
            torch.testing.assert_close(slopes(denoiser, end), s.r[N] * want)
            torch.testing.assert_close(end.detach(), visited[N])

    def test_leaps_that_miss_count_less(self, name, z):
        denoiser, times = made(name)
        end, visited = chain(denoiser, times, z, LeapAlign(1.0, 0.2), uniform=choosing(1, 4))
        each = [torch.autograd.grad(end[b].sum(), denoiser.net.theta, retain_graph=True)[0] for b in range(2)]
        plain, _ = chain(denoiser, times, z, LeapAlign(1.0, None), uniform=choosing(1, 4))
        s, r = Straight(denoiser, times, visited), straight(denoiser.schedule, times)[0]
        w = [x / r[i] for i, x in enumerate(visited)]
        for b in range(2):
            near = w[1][b] + (s.u[4] - s.u[1]) * s.theta[1] * visited[1][b] - w[4][b]
            far = w[4][b] + (s.u[N] - s.u[4]) * s.theta[4] * visited[4][b] - w[N][b]
            share = 0.4 / sum(max(0.2, float(d.abs().mean())) for d in (near, far))
            own = torch.autograd.grad(plain[b].sum(), denoiser.net.theta, retain_graph=True)[0]
            torch.testing.assert_close(each[b], share * own)

    def test_bridge(self, name, z):
        denoiser, times = made(name)
        for chosen in ((0, 2, 5), (1, 3, 4)):
            for number, joined in ((0.0, chosen[1]), (0.99, chosen[2])):
                end, visited = chain(denoiser, times, z, Bridge(3, 0.25), uniform=choosing(*chosen, number=number))
                s, factor = Straight(denoiser, times, visited), N / 3
                want = torch.zeros(N, dtype=torch.float64)
                for i in chosen:
                    through = 1 + 0.25 * factor * s.h[joined] * s.theta[joined] * s.r[joined] * (i < joined)
                    want[i] = factor * s.direct(i) * through
                torch.testing.assert_close(slopes(denoiser, end), s.r[N] * want)
                torch.testing.assert_close(end.detach(), visited[N])

    def test_lagrange(self, name, z):
        denoiser, times = made(name)
        end, visited = chain(denoiser, times, z, Lagrange(2, 0.5), uniform=choosing(0, 3))
        s = Straight(denoiser, times, visited)

        def trapezium(a, b, to):
            """Weights of the line through two velocities, over [u_a, u_to]."""
            length, middle = s.u[to] - s.u[a], (s.u[to] + s.u[a]) / 2
            later = length * (middle - s.u[a]) / (s.u[b] - s.u[a])
            return length - later, later

        want = torch.zeros(N, dtype=torch.float64)
        first, second = trapezium(0, 2, 3), trapezium(3, 5, N)
        through = 1 + 0.5 * second[0] * s.theta[3] * s.r[3]
        want[0], want[2] = first[0] * s.z[0] * through, first[1] * s.z[2] * through
        want[3], want[5] = second[0] * s.z[3], second[1] * s.z[5]
        torch.testing.assert_close(slopes(denoiser, end), s.r[N] * want)
        torch.testing.assert_close(end.detach(), visited[N])

    def test_drtune_holds_flow_outputs_fixed(self, name, z):
        """In the straight path's own target a change keeps its size in z/r: what the sparse surrogate gives."""
        denoiser, times = made(name)
        found, visited = chain(denoiser, times, z, DRTune(N), uniform=choosing())
        s = Straight(denoiser, times, visited)
        want = s.r[N] * torch.stack([s.direct(i) for i in range(N)])
        torch.testing.assert_close(slopes(denoiser, found), want)
        sparse, _ = chain(denoiser, times, z, Surrogate(N))
        torch.testing.assert_close(slopes(denoiser, sparse), want)


def test_drtune_holds_outputs_fixed_in_the_networks_own_target(z):
    """Of a network of the noise a change shrinks or grows by alpha_s/alpha_t on its way."""
    denoiser, times = made("cosine", NOISE)
    end, visited = chain(denoiser, times, z, DRTune(N), DDIM(), choosing())
    alpha, sigma = denoiser.schedule.alpha(times), denoiser.schedule.sigma(times)
    moved = sigma[1:] - alpha[1:] * sigma[:-1] / alpha[:-1]
    want = torch.stack([visited[i].sum() * moved[i] * alpha[N] / alpha[i + 1] for i in range(N)])
    torch.testing.assert_close(slopes(denoiser, end), want)


@pytest.mark.parametrize("how", [DRTune(2), DRTune(4), Bridge(2, 0.0), Bridge(3, 0.0), Surrogate(2)], ids=str)
def test_random_steps_are_unbiased_for_all(how, z):
    denoiser, times = made("flow")
    everything = slopes(denoiser, chain(denoiser, times, z, DRTune(N))[0])
    if isinstance(how, DRTune):
        draws = [choosing(number=(k + 0.5) / 60) for k in range(60)]
        uniforms = [lambda n, p, u=u: u(n, p) if p == "drtune" else torch.zeros(n) for u in draws]
    else:
        uniforms = [choosing(*some) for some in itertools.combinations(range(N), how.steps)]
    found = torch.stack([slopes(denoiser, chain(denoiser, times, z, how, uniform=u)[0]) for u in uniforms])
    torch.testing.assert_close(found.mean(0), everything)


@pytest.mark.parametrize("how", [LeapAlign(1.0, None), Lagrange(1, 1.0), Bridge(2, 1.0)], ids=str)
@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_of_two_steps_and_all_of_the_coupling_it_is_the_true_gradient(name, how, z):
    denoiser, _ = made(name)
    times = uniform_times(denoiser.schedule, 2)
    denoiser.net.times = times[:-1]
    truth, found = (slopes(denoiser, chain(denoiser, times, z, h)[0]) for h in (AllSteps(), how))
    torch.testing.assert_close(found, truth)


def test_leaps_of_order_one_are_leap_aligns(z):
    denoiser, times = made("cosine")
    for pair in itertools.combinations(range(N), 2):
        a, b = (chain(denoiser, times, z, how, uniform=choosing(*pair))[0] for how in (Lagrange(1, 0.3), LeapAlign(0.3, None)))
        torch.testing.assert_close(slopes(denoiser, a), slopes(denoiser, b))


def test_lagrange_integrals_are_exact_for_polynomials():
    points = torch.tensor([[1.0], [0.7], [0.2]], dtype=torch.float64)
    low, high = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    weights = integrals(points, low, high)
    for power in range(3):
        exact = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
        torch.testing.assert_close((weights * points**power).sum(0), exact)


@pytest.mark.parametrize("sampler", [Euler(), DDIM(), Heun(), DPMSolver2M(), DDPM(), DDIM(0.7)], ids=str)
class TestEverySampler:
    def test_the_image_is_the_chains(self, sampler, z):
        denoiser, times = made("cosine")
        noise = {i: torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(i)) for i in range(N + 3)}
        truth, _ = chain(denoiser, times, z, NoSteps(), sampler, noise=noise.__getitem__)
        for how in (LeapAlign(), Lagrange(2), Bridge(3), DRTune(2), LowVariance(2)):
            end, _ = chain(denoiser, times, z, how, sampler, noise=noise.__getitem__)
            torch.testing.assert_close(end[: len(z)].detach(), truth)

    def test_low_variance_takes_the_last_step_again(self, sampler, z):
        denoiser, times = made("cosine")
        noise = {i: torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(i)) for i in range(N + 3)}
        ends, _ = chain(denoiser, times, z, LowVariance(3), sampler, noise=noise.__getitem__)
        first, last = ends[: len(z)].detach(), times[-2:]
        alpha, sigma = denoiser.schedule.alpha(last[0]), denoiser.schedule.sigma(last[0])
        for k in range(3):
            again = alpha * first + sigma * noise[N + k]
            own, _ = chain(denoiser, last, again, Last(1), sampler, noise=lambda _: noise[N - 1])
            torch.testing.assert_close(ends[(k + 1) * len(z) : (k + 2) * len(z)], own)
            a, b = (slopes(denoiser, x) for x in (own, ends[(k + 1) * len(z) : (k + 2) * len(z)]))
            torch.testing.assert_close(a, b)


def test_an_early_end_is_the_prediction_there(z):
    denoiser, times = made("flow")
    numbers = {"drtune stop": 0.99, "drtune": 0.0}
    end, visited = chain(denoiser, times, z, DRTune(1, among=3), uniform=lambda n, p: torch.full((n,), numbers[p]))
    t = times[3].expand(len(z))
    torch.testing.assert_close(end.detach(), denoiser(visited[3], t).x0.detach())
    s = Straight(denoiser, times, visited)
    want = torch.zeros(N, dtype=torch.float64)
    want[0] = 4 * s.direct(0)  # one of the four calls down to there
    torch.testing.assert_close(slopes(denoiser, end), want)


def test_no_jacobian_is_chained_and_checkpoints_change_nothing(z):
    denoiser, times = made("cosine")
    for how in (LeapAlign(), Lagrange(2), Bridge(3), DRTune(3), LowVariance(1)):
        kwargs = {"noise": lambda i: torch.ones_like(z)}
        a, b = (slopes(denoiser, chain(denoiser, times, z, how, checkpoint=c, **kwargs)[0]) for c in (True, False))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (LeapAlign(), r"LeapAlign leaps twice: the chain needs 2 steps or more, got 1"),
        (Lagrange(7), r"Lagrange\(7\), but the chain takes 6 steps"),
        (Bridge(1), r"Bridge joins two steps: choose Bridge\(2\) or more"),
        (DRTune(5, among=3), r"DRTune\(5\), but the chain takes 4 steps"),
        (DRTune(1, among=9), r"DRTune\(among=9\), but the chain takes 6 steps"),
        (LowVariance(0), r"LowVariance\(0\) adds no noise"),
    ],
)
def test_what_cannot_be_is_refused(how, message, z):
    denoiser, times = made("flow")
    with pytest.raises(ValueError, match=message):
        chain(denoiser, times[-2:] if isinstance(how, LeapAlign) else times, z, how)


def test_new_noise_needs_a_generator(z):
    denoiser, times = made("flow")
    with pytest.raises(ValueError, match=r"pass generator=torch\.Generator"):
        chain(denoiser, times, z, LowVariance(1))
    assert bool(chain(denoiser, times, z, LowVariance(1), generator=torch.Generator())[0].isfinite().all())
