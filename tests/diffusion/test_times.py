"""Time samplers never change what is learned: quadrature, exact counts and the papers' formulas."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from scipy import stats

import xhat
from oracles import SCHEDULES, GaussianData, ScaledX0
from xhat import Cosine, Discrete, weightings
from xhat.diffusion.times import (
    Adaptive,
    InfoNoise,
    LogitNormal,
    LogNormalSigma,
    LossSecondMoment,
    OneLevel,
    Sequential,
    Shifted,
    Stratified,
    Uncorrected,
    Uniform,
)


def warm(times):
    """A learned sampler whose history is full: losses (1 + 3t)(1 + noise)."""

    def make(schedule):
        sampler = times()
        own = torch.Generator().manual_seed(5)
        for _ in range(20):
            n = (schedule.steps or sampler.bins) * 2
            t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
            if schedule.steps is None:
                t = schedule.t_min + (1 - schedule.t_min) * t
            else:
                t = (t * schedule.steps).floor() / schedule.steps + 1 / schedule.steps
            sampler.update(schedule, t, (1 + 3 * t) * (0.5 + torch.rand(n, generator=own, dtype=torch.float64)))
        return sampler

    return make


SAMPLERS = {
    "stratified": lambda _: Stratified(),
    "uniform": lambda _: Uniform(),
    "logit_normal": lambda _: LogitNormal(0.4, 0.9),
    "log_normal_sigma": lambda _: LogNormalSigma(-0.4, 1.0),
    "shifted": lambda _: Shifted(LogitNormal(0.4, 0.9), 2.0),
    "shifted_back": lambda _: Shifted(LogitNormal(-0.2, 0.8), 0.5),
    "log_normal_beyond": lambda _: LogNormalSigma(1.0, 3.0),  # wider than any schedule: truncated and renormalized
    "second_moment": warm(lambda: LossSecondMoment(history=5, bins=16)),
    "adaptive": warm(lambda: Adaptive(bins=16)),
}
SCHEDULE_NAMES = ["cosine", "flow_shift3", "ve", "linear_logsnr", "linear_beta", "discrete_rescaled"]
CONTINUOUS_NAMES = ["cosine", "flow_shift3", "ve", "learned"]
WEIGHTINGS = {
    "constant": weightings.constant,
    "min_snr": weightings.min_snr(5),
    "sigmoid": weightings.sigmoid(0.5),
    "debiased": weightings.debiased,
}


def pair(sampler, schedule):
    schedule = SCHEDULES[schedule]()
    return SAMPLERS[sampler](schedule), schedule


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def midpoints(low, high, n):
    return low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n


def gauss_legendre(f, edges, order=16):
    """∫ f over the intervals between the edges."""
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(order))
    half = edges.diff().unsqueeze(1) / 2
    points = edges[:-1].unsqueeze(1) + half * (1 + x)
    return (f(points.flatten()).reshape(points.shape) * w * half).sum()


@pytest.mark.parametrize("schedule", [Cosine(), Discrete.cosine_beta(20)], ids=repr)
@pytest.mark.parametrize(
    ("times", "needed"),
    [(LossSecondMoment(3), "3 losses"), (Adaptive(), "1 loss"), (Uncorrected(InfoNoise()), "1 loss")],
    ids=repr,
)
def test_times_that_learn_say_what_has_not_come_about(schedule, times, needed):
    times = copy.deepcopy(times)
    assert Stratified().unmet(schedule, 0) is None
    assert times.unmet(schedule, 5).endswith("no term at the drawn time has shown it a loss")
    n = schedule.steps or 128
    t = (torch.arange(n) + 1) / n if schedule.steps else schedule.t_min + (1 - schedule.t_min) * (torch.arange(n) + 0.5) / n
    for _ in range(int(needed[0]) - 1):
        times.update(schedule, t, torch.ones_like(t))
    times.update(schedule, t[1:], torch.ones_like(t[1:]))
    assert (
        times.unmet(schedule, 5)
        == f"has drawn evenly to the end, because it waits for {needed} at each of {n} levels: train longer, or choose others"
    )
    uniform = times.relative_density(schedule, t)
    torch.testing.assert_close(uniform, torch.ones_like(uniform))
    times.update(schedule, t[:1], torch.ones_like(t[:1]))
    assert times.unmet(schedule, 5) is None
    assert Sequential(n).unmet(schedule, n) is None
    assert (
        Sequential(n).unmet(schedule, n - 1)
        == f"has been at {n - 1} of {n} levels, those with the least noise: train longer, or choose others"
    )


@pytest.mark.parametrize("weight", WEIGHTINGS)
@pytest.mark.parametrize("schedule", CONTINUOUS_NAMES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.trap(9)
def test_importance_weighted_mean_is_the_uniform_mean(sampler, schedule, weight):
    """∫ importance w f over the quantiles u = ∫ w f over t between the same ends, both by quadrature: no noise at all."""
    times, schedule = pair(sampler, schedule)
    first, last = times._ends(schedule)
    ends = times.icdf(schedule, first + (last - first) * torch.tensor([0.02, 0.98], dtype=torch.float64)).detach()
    bins = schedule.t_min + (1 - schedule.t_min) * torch.arange(1, 16, dtype=torch.float64) / 16
    kink = schedule.t_of(torch.tensor([math.log(5)], dtype=torch.float64)).detach()  # of min-SNR
    edges = torch.cat([ends, bins, kink]).clamp(*ends.tolist()).unique()

    def f(t):
        logsnr = schedule.logsnr(t)
        return (WEIGHTINGS[weight](logsnr, schedule) * torch.sigmoid(logsnr) * (1 + t)).detach()

    def drawn(u):
        t = times.icdf(schedule, first + (last - first) * u).detach()
        return f(t) / times.relative_density(schedule, t)

    uniform = gauss_legendre(f, edges) / (1 - schedule.t_min)
    close(gauss_legendre(drawn, ((times.cdf(schedule, edges) - first) / (last - first)).detach()), uniform, rtol=1e-7)


@pytest.mark.parametrize("schedule", ["linear_beta", "discrete_rescaled"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.trap(9)
def test_grid_probabilities_are_sampled_and_corrected_exactly(sampler, schedule):
    """On a grid the importance is uniform/p_i, and stratified draws hit every point n p_i times, give or take two."""
    times, schedule = pair(sampler, schedule)
    grid = torch.arange(1, 101, dtype=torch.float64) / 100
    p = times.relative_density(schedule, grid) / 100
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    n = 40_000
    t, importance = times.sample(schedule, n, torch.Generator().manual_seed(0))
    index = schedule.index(t)
    close(t, (index / 100).float())
    close(importance.double(), 0.01 / p[index - 1], rtol=1e-6)
    count = torch.bincount(index, minlength=101)[1:]
    allowed = 2 if times.stratified else 5 * (n * p).sqrt() + 5
    assert ((count - n * p).abs() <= allowed).all()


@pytest.mark.parametrize("schedule", CONTINUOUS_NAMES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_follow_the_density(sampler, schedule):
    """Stratified draws have a Kolmogorov distance of at most 1/n to the cdf; importances are uniform over own density."""
    times, schedule = pair(sampler, schedule)
    n = 2_000
    t, importance = times.sample(schedule, n, torch.Generator().manual_seed(0))
    assert t.dtype == importance.dtype == torch.float32
    assert (t >= np.float32(schedule.t_min)).all()
    assert (t <= 1).all()
    first, last = times._ends(schedule)
    u = (times.cdf(schedule, t.double().sort().values) - first) / (last - first)
    distance = (u.detach() - midpoints(0, 1, n)).abs().max().item()
    # float32 times have 6e-8/t of relative error, which steep densities turn into quantiles
    assert distance <= (1.01 / n if times.stratified else 1.9 / math.sqrt(n))
    close(importance, (1 / times.relative_density(schedule, t.double())).float().detach(), rtol=1e-5)


@pytest.mark.parametrize("schedule", CONTINUOUS_NAMES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_density_is_the_derivative_of_the_cdf_and_icdf_its_inverse(sampler, schedule):
    times, schedule = pair(sampler, schedule)
    t = torch.linspace(0.0531, 0.9427, 41, dtype=torch.float64)
    h = 1e-6
    close(
        times.density(schedule, t).detach(),
        ((times.cdf(schedule, t + h) - times.cdf(schedule, t - h)) / (2 * h)).detach(),
        rtol=1e-5,
        atol=1e-7,
    )
    inside = t[(times.density(schedule, t) > 1e-4)]
    close(times.icdf(schedule, times.cdf(schedule, inside)).detach(), inside, rtol=1e-6)
    bins = schedule.t_min + (1 - schedule.t_min) * torch.arange(1, 16, dtype=torch.float64) / 16
    ends = torch.sigmoid(torch.linspace(-10, 10, 81, dtype=torch.float64)).clamp(min=schedule.t_min)
    edges = torch.cat([bins, ends]).unique()
    mass = gauss_legendre(lambda t: times.density(schedule, t).detach(), edges)
    close(mass, (times.cdf(schedule, edges[-1:]) - times.cdf(schedule, edges[:1])).detach().squeeze(), rtol=1e-8)


@pytest.mark.parametrize("n", [1, 7, 64])
@pytest.mark.parametrize("schedule", ["cosine", "flow"])
def test_stratified_puts_exactly_one_time_in_each_stratum(n, schedule):
    times, schedule = pair("stratified", schedule)
    t, importance = times.sample(schedule, n, torch.Generator().manual_seed(3))
    strata = ((t.double() - schedule.t_min) / (1 - schedule.t_min) * n).floor().long()
    assert sorted(strata.tolist()) == list(range(n))
    close(importance, torch.ones(n))


def test_strata_are_shuffled_over_the_batch_and_uniform_is_not_stratified():
    schedule = SCHEDULES["cosine"]()
    t, _ = Stratified().sample(schedule, 64, torch.Generator().manual_seed(3))
    assert not torch.equal(t, t.sort().values)
    t, _ = Uniform().sample(schedule, 64, torch.Generator().manual_seed(3))
    assert len(set((t * 64).floor().tolist())) < 64


def test_stratified_on_a_grid_visits_every_step_once_when_n_is_its_length():
    times, schedule = pair("stratified", "linear_beta")
    t, _ = times.sample(schedule, 100, torch.Generator().manual_seed(1))
    assert sorted(schedule.index(t).tolist()) == list(range(1, 101))


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_is_a_function_of_the_generator(sampler, schedule):
    times, schedule = pair(sampler, schedule)
    state = torch.get_rng_state()
    first, second = (times.sample(schedule, 9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first[0], times.sample(schedule, 9, torch.Generator().manual_seed(5))[0])


def objective_on(schedule, times):
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    return xhat.Objective(denoiser, {"d": xhat.Term(xhat.Denoising(xhat.V))}, times)


@pytest.mark.parametrize("schedule", ["linear_beta", "discrete_rescaled"])
@pytest.mark.parametrize("cycle", [0, 7])
def test_a_cycle_of_sequential_times_is_the_grid_in_order(schedule, cycle):
    """i = (n mod T) + 1 for the whole batch, importance 1."""
    schedule, times = SCHEDULES[schedule](), Sequential(levels=3)  # a grid brings its own length
    objective = objective_on(schedule, times)
    x0 = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    drawn = [objective.draw(x0, step=100 * cycle + n) for n in range(100)]
    assert all(torch.equal(d.t, schedule.time(torch.full((3,), n + 1))) for n, d in enumerate(drawn))
    assert all(torch.equal(d.importance, torch.ones(3)) for d in drawn)


@pytest.mark.parametrize("schedule", CONTINUOUS_NAMES)
def test_sequential_times_are_the_midpoints_of_strata_in_continuous_time(schedule):
    schedule, times = SCHEDULES[schedule](), Sequential(levels=50)
    t = torch.stack([times.sample(schedule, 2, step=n)[0] for n in range(150)])
    expected = midpoints(schedule.t_min, 1, 50).float().repeat(3)
    close(t, torch.stack([expected, expected], 1), rtol=1e-6)
    close(times.sample(schedule, 4)[0], t[:1, 0].expand(4))  # without a step: the first
    close(Sequential().sample(xhat.Cosine(), 1, step=1999)[0], torch.tensor([0.9995]))  # a thousand levels by default


@pytest.mark.parametrize("schedule", ["linear_beta", "discrete_rescaled"])
def test_a_cycle_of_sequential_times_has_the_stratified_expectation_exactly(schedule, rng):
    """sum over the grid of the same loss at given noise, drawn one level a step and all levels at once."""
    schedule, x0 = SCHEDULES[schedule](), GaussianData().sample(1, rng)
    one, noise = objective_on(schedule, Sequential()), torch.ones(1, 1, 2, 2, dtype=torch.float64)

    def loss(draw):
        n = len(draw.t)
        z = one._noisy(x0.expand(n, -1, -1, -1), draw.t, noise.expand(n, -1, -1, -1))
        error = one.denoiser(z, draw.t).in_space(xhat.V) - xhat.V.of(schedule, draw.t, x0.expand_as(z), noise.expand_as(z))
        return (draw.importance * error.square().flatten(1).mean(1)).detach()

    cycle = torch.cat([loss(one.draw(x0, step=n)) for n in range(100)])
    together = loss(objective_on(schedule, Stratified()).draw(x0.expand(100, -1, -1, -1), step=0))
    close(cycle.mean(), together.mean())
    assert cycle.std() > 0.01


@pytest.mark.parametrize("times", [Sequential, OneLevel])
@pytest.mark.parametrize("schedule", ["cosine", "linear_beta"])
def test_a_whole_global_batch_is_at_one_level_on_every_shard(times, schedule):
    """Two ranks of three images see the time that one process sees for all six; nothing is kept between steps."""
    x0 = torch.zeros(6, 1, 2, 2, dtype=torch.float64)
    first, second = (objective_on(SCHEDULES[schedule](), times()) for _ in range(2))
    whole = {n: first.draw(x0, step=n).t for n in (3, 4, 5)}
    for n in (5, 3):  # another process, resumed, in another order
        for shard in (xhat.Shard(0, 6), xhat.Shard(3, 6)):
            assert torch.equal(second.draw(x0[:3], step=n, shard=shard).t, whole[n][:1].expand(3))
        assert torch.equal(whole[n], whole[n][:1].expand(6))
    assert len({float(t[0]) for t in whole.values()}) == 3


@pytest.mark.parametrize("schedule", ["cosine", "flow_shift3", "linear_beta"])
def test_one_level_is_uniform_over_batches(schedule):
    """Kolmogorov-Smirnov over 2000 batches; importance 1."""
    schedule, times = SCHEDULES[schedule](), OneLevel()
    own = torch.Generator().manual_seed(0)
    drawn = [times.sample(schedule, 4, own) for _ in range(2000)]
    assert all(torch.equal(importance, torch.ones(4)) for _, importance in drawn)
    t = torch.stack([t[0] for t, _ in drawn]).double()
    step = 1 / schedule.steps if schedule.steps else 0.0
    u = (t - schedule.t_min) / (1 - schedule.t_min) if not schedule.steps else t - step * torch.rand(2000, generator=own)
    assert stats.kstest(u.numpy(), "uniform").statistic < 1.9 / math.sqrt(2000)


def test_a_sampler_of_the_users_own():
    class Half(Uniform):
        def sample(self, schedule, n, generator=None, *, step=0):
            return torch.full((n,), 0.5), torch.ones(n)

    draw = objective_on(SCHEDULES["cosine"](), Half()).draw(torch.zeros(2, 1, 2, 2, dtype=torch.float64), step=5)
    close(draw.t, torch.full((2,), 0.5))


def test_logit_normal_is_sd3s_density():
    times, schedule = LogitNormal(0.5, 0.8), SCHEDULES["cosine"]()
    t = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    expected = stats.norm.pdf((torch.logit(t).numpy() - 0.5) / 0.8) / 0.8 / (t * (1 - t)).numpy()
    close(times.density(schedule, t), torch.from_numpy(expected))


@pytest.mark.parametrize("schedule", ["ve", "cosine", "flow"])
def test_log_normal_sigma_draws_edms_noise_levels_on_any_schedule(schedule):
    """ln(sigma/alpha) of the draws is normal with EDM's mean and deviation, up to the schedule's truncation."""
    times, schedule = LogNormalSigma(-1.2, 1.2), SCHEDULES[schedule]()
    t, _ = times.sample(schedule, 4_000, torch.Generator().manual_seed(0))
    level = (-schedule.logsnr(t.double()) / 2).numpy()
    assert stats.kstest(level, stats.norm(-1.2, 1.2).cdf).statistic < 3e-3  # ends cut at 3.9 deviations or later


def guided_diffusion_weights(history, uniform):
    """Improved DDPM's sampler, as its code writes it (LossSecondMomentResampler.weights)."""
    weights = np.sqrt(np.mean(history**2, axis=-1))
    weights /= np.sum(weights)
    weights *= 1 - uniform
    weights += uniform / len(weights)
    return weights


def test_second_moment_sampler_is_improved_ddpms():
    """Many updates in random order, several losses of one step at once: the last ten of each step, in order."""
    schedule, own = SCHEDULES["linear_beta"](), np.random.default_rng(0)
    times = LossSecondMoment(history=10, uniform=0.001)
    seen = {i: [] for i in range(100)}
    while min(map(len, seen.values())) < 10:
        close(times.relative_density(schedule, torch.tensor([0.5]).double()), torch.ones(1).double())  # uniform until warm
        index, loss = own.integers(0, 100, 300), own.exponential(size=300)
        index[:25] = 7  # more of one step than its history holds
        for i, x in zip(index, loss, strict=True):
            seen[i].append(x)
        times.update(schedule, torch.from_numpy((index + 1) / 100), torch.from_numpy(loss))
    p = guided_diffusion_weights(np.array([seen[i][-10:] for i in range(100)]), 0.001)
    grid = torch.arange(1, 101, dtype=torch.float64) / 100
    close(times.relative_density(schedule, grid) / 100, torch.from_numpy(p), rtol=1e-9)


@pytest.mark.parametrize("cls", [LossSecondMoment, Adaptive])
@pytest.mark.trap(15)
def test_history_survives_a_checkpoint(cls):
    times, schedule = cls(bins=8), SCHEDULES["cosine"]()
    t = midpoints(0, 1, 800)
    for _ in range(3):
        times.update(schedule, t, 1 + t**2)
    other = cls(bins=8)
    other.load_state_dict(times.state_dict())
    times.update(schedule, t, 2 + t), other.update(schedule, t, 2 + t)
    close(other.density(schedule, t), times.density(schedule, t), rtol=0, atol=0)
    assert times.density(schedule, t).std() > 0.01


def test_a_history_of_another_depth_is_refused():
    """Only the number of cells is taken from what is loaded."""
    times, schedule, t = LossSecondMoment(history=20, bins=4), SCHEDULES["cosine"](), midpoints(0, 1, 8)
    times.update(schedule, t, 1 + t)
    with pytest.raises(RuntimeError, match="size mismatch"):
        LossSecondMoment(history=5, bins=4).load_state_dict(times.state_dict())
    half = {**times.state_dict(), "counts": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(RuntimeError, match="size mismatch"):
        LossSecondMoment(history=20, bins=4).load_state_dict(half)


@pytest.mark.parametrize("cls", [LossSecondMoment, Adaptive])
@pytest.mark.trap(6)
def test_history_survives_a_cast_of_the_model(cls):
    times = cls(bins=4)
    schedule = SCHEDULES["cosine"]()
    times.to(torch.bfloat16)
    t = midpoints(0, 1, 400)
    times.update(schedule, t, 1 + t)
    assert torch.isfinite(times.density(schedule, t)).all()


def test_adaptive_follows_the_mean_loss_without_start_up_bias():
    """After any number of updates with the same losses p ∝ their mean per bin; a bin not drawn keeps its own."""
    times = Adaptive(decay=0.9, uniform=0.1, bins=4)
    schedule = SCHEDULES["cosine"]()
    t, loss = midpoints(0, 1, 8), torch.tensor([1.0, 3, 4, 4, 6, 10, 1, 1], dtype=torch.float64)
    expected = 0.9 * torch.tensor([2, 4, 8, 1]).double() / 15 + 0.1 / 4
    for _ in range(3):
        times.update(schedule, t, loss)
        close(times.density(schedule, t[::2]) / 4, expected)
    times.update(schedule, t[:2], loss[:2])
    close(times.density(schedule, t[::2]) / 4, expected)


@pytest.mark.parametrize("cls", [LossSecondMoment, Adaptive])
def test_learned_samplers_that_know_nothing_are_uniform(cls):
    t, importance = cls().sample(SCHEDULES["cosine"](), 16, torch.Generator().manual_seed(0))
    close(importance, torch.ones(16))
    assert len(set((t * 16).floor().tolist())) == 16


def test_learned_importance_is_bounded_by_the_uniform_share():
    """A loss of zero somewhere must not give infinite importances: at most 1/uniform."""
    times = Adaptive(uniform=0.05, bins=10)
    schedule = SCHEDULES["cosine"]()
    t = midpoints(0, 1, 100)
    times.update(schedule, t, (t > 0.5).double())
    _, importance = times.sample(schedule, 1000, torch.Generator().manual_seed(0))
    assert importance.max().item() <= 1 / 0.05 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Sequential(levels=0), "at least 1 level"),
        (lambda: LogitNormal(scale=0.0), "positive"),
        (lambda: LogNormalSigma(std=-1.0), "positive"),
        (lambda: Adaptive(uniform=0.0), "uniform share"),
        (lambda: LossSecondMoment(uniform=1.5), "uniform share"),
        (lambda: Adaptive(bins=0), "at least 1 bin, got 0"),
    ],
)
def test_bad_input_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_sampler_serves_any_schedule_and_a_learned_one_those_of_as_many_cells():
    times, t = Adaptive(bins=4), torch.tensor([0.3]).double()
    one, other, grid = SCHEDULES["flow"](), SCHEDULES["cosine"](), SCHEDULES["linear_beta"]()
    assert len(times.sample(grid, 3)[0]) == len(times.sample(one, 3)[0]) == 3
    times.update(one, t, 1 + t)
    close(times.density(other, t), torch.ones(1).double())
    with pytest.raises(ValueError, match="learned on a schedule of 4 cells, this one has 100: make a new one"):
        times.sample(grid, 3)


ANY_LOSS = strategies.floats(allow_nan=True, allow_infinity=True, width=64)


@pytest.mark.trap(29)
@pytest.mark.parametrize("schedule", ["cosine", "linear_beta"])
@pytest.mark.parametrize("sampler", [lambda: Adaptive(bins=8), lambda: LossSecondMoment(history=2, uniform=0.05, bins=8)])
@given(losses=strategies.lists(ANY_LOSS, min_size=8, max_size=60), seed=strategies.integers(0, 99))
def test_whatever_the_losses_every_level_keeps_its_share_and_the_importance_is_1_on_average(sampler, schedule, losses, seed):
    """Negative, huge, tiny, NaN and infinite ones: p >= uniform/bins, sum p = 1, E[importance] = sum p (1/(bins p)) = 1."""
    times, schedule = sampler(), xhat.Discrete.linear_beta(8) if schedule == "linear_beta" else xhat.Cosine()
    levels = (torch.arange(8, dtype=torch.float64) + (1.0 if schedule.steps else 0.5)) / 8
    own = torch.Generator().manual_seed(seed)
    for _ in range(2):  # every level is known
        times.update(schedule, levels, torch.randn(8, generator=own, dtype=torch.float64))
    times.update(schedule, levels[torch.randint(8, (len(losses),), generator=own)], torch.tensor(losses, dtype=torch.float64))
    p = times.relative_density(schedule, levels) / 8
    assert p.min() >= times.uniform / 8 * (1 - 1e-9)
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    t, importance = times.sample(schedule, 4096, own)
    assert torch.isfinite(t).all()
    assert importance.double().mean().item() == pytest.approx(1, abs=8 * 20 / 4096)  # a stratum at each edge of a bin


@pytest.mark.trap(29)
@pytest.mark.parametrize("times", [Adaptive, LossSecondMoment])
def test_a_learned_uncertainty_draws_where_the_balanced_loss_is_not_where_its_offset_is(times):
    """The value is exp(-u) error + u: times follow the first summand, the only one with a gradient for the network."""
    schedule = SCHEDULES["linear_beta"]()
    loss = xhat.LearnedUncertainty(xhat.Denoising(), features=4)
    torch.nn.init.constant_(loss.gains, -3.0)
    objective = xhat.Objective(
        xhat.Denoiser(ScaledX0(schedule, xhat.NOISE), schedule, xhat.NOISE), {"d": xhat.Term(loss)}, times(uniform=0.01)
    )
    seen, update = [], objective.times.update
    objective.times.update = lambda on, t, value: (seen.append((t, value)), update(on, t, value))
    x0 = GaussianData().sample(50, torch.Generator().manual_seed(0))
    objective(x0, step=3)
    draw = objective.draw(x0, step=3)
    u = loss.uncertainty(schedule.logsnr(draw.t))
    assert u.abs().min() > 0.01
    (_, learned), value = seen[0], objective.per_image("d", draw) / draw.importance
    close(learned, (value - u).detach().double(), rtol=1e-5, atol=1e-6)
    assert (learned > 0).all()


class Late(xhat.times.Stratified):
    """Of density 2t."""

    def cdf(self, schedule, t):
        return t**2

    def icdf(self, schedule, u):
        return u.sqrt()

    def density(self, schedule, t):
        return 2 * t

    def relative_density(self, schedule, t):
        return xhat.TimeSampler.relative_density(self, schedule, t)


@pytest.mark.parametrize("schedule", [xhat.Cosine(), xhat.Discrete.linear_beta(1000)])
def test_a_subclass_of_uniform_times_has_its_own_distribution(schedule):
    """What is known of uniform times is not taken for granted of it: E t = 2/3, and E of the importance is 1."""
    t, importance = Late().sample(schedule, 4096, torch.Generator().manual_seed(0))
    assert float(t.double().mean()) == pytest.approx(2 / 3, abs=2e-3)
    assert float((importance.double() * t.double()).mean()) == pytest.approx(1 / 2, abs=2e-3)


def test_on_a_flow_shifted_times_are_sd3s(rng):
    """t' = s t/(1 + (s - 1) t) (Esser et al. 2024, eq. 23)."""
    flow, plain, own = xhat.Flow(), LogitNormal(0.1, 0.8), Shifted(LogitNormal(0.1, 0.8), 3.0)
    u = torch.rand(200, dtype=torch.float64, generator=rng)
    t = plain.icdf(flow, u)
    torch.testing.assert_close(own.icdf(flow, u), 3 * t / (1 + 2 * t))
    for name in ("cosine", "ve"):
        schedule = SCHEDULES[name]()
        before, after = plain.icdf(schedule, u), Shifted(plain, 2.0).icdf(schedule, u)
        torch.testing.assert_close(schedule.logsnr(after), schedule.logsnr(before) - 2 * math.log(2))


def test_times_that_learn_are_not_shifted():
    with pytest.raises(ValueError, match="finds its times itself"):
        Shifted(Adaptive(), 2.0)
    with pytest.raises(ValueError, match="above 0"):
        Shifted(Uniform(), 0.0)
