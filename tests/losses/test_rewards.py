"""Policy gradients against closed forms: of a chain's own expectation, and of Gaussians whose bound is their likelihood."""

import copy
import gc
import math

import pytest
import torch

from oracles import SHAPE
from xhat import DDIM, DDPM, X0, Cosine, Denoiser, Denoising, FullChain, ImageLoss, Objective, Term, V
from xhat.diffusion.weightings import constant
from xhat.losses.penalties import minus, total_variation
from xhat.losses.rewards import (
    BoundLikelihood,
    Centred,
    ForwardContrast,
    Normalised,
    PolicyGradient,
    StepLikelihood,
    Trajectory,
)
from xhat.rng import Shard
from xhat.sampling.differentiate import AllSteps
from xhat.sampling.samplers import Heun
from xhat.sampling.spacings import uniform_times

ROWS = 512


class Gain(torch.nn.Module):
    """x0_hat = w z, one number."""

    def __init__(self, w=0.6):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, z, t):
        return self.w * z


class GaussianNet(torch.nn.Module):
    """The exact x0_hat of N(mean, exp(log_std)²), whose two numbers are learned."""

    def __init__(self, schedule, mean=0.2, log_std=-0.5):
        super().__init__()
        self.schedule = schedule
        self.mean = torch.nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_std = torch.nn.Parameter(torch.tensor(log_std, dtype=torch.float64))

    def forward(self, z, t):
        alpha, sigma = (f(t.double()).reshape(-1, 1, 1, 1) for f in (self.schedule.alpha, self.schedule.sigma))
        variance = torch.exp(2 * self.log_std)
        return (sigma**2 * self.mean + alpha * variance * z) / (sigma**2 + alpha**2 * variance)


def drawn(loss, denoiser, rows=ROWS, seed=0):
    """The loss on a draw of so many samples."""
    objective = Objective(denoiser, {"own": Term(loss)}, seed=seed)
    return objective(shape=(rows, *SHAPE), step=seed)["loss"]


def mean(images):
    return images.flatten(1).mean(1)


def many(images):
    """How many pixels are above 0: no gradient."""
    return (images > 0).flatten(1).sum(1)


def gradients(loss, denoiser, trials, rows=ROWS):
    """Of each trial, (trials, parameters)."""
    found = []
    for seed in range(trials):
        value = drawn(loss, denoiser, rows, seed)
        found.append(torch.stack(torch.autograd.grad(value, tuple(denoiser.net.parameters()))))
    return torch.stack(found)


def near(found, want, errors=4.0):
    """Within so many standard errors of the mean over trials, which must be small beside what is wanted."""
    se = found.std(0) / math.sqrt(len(found))
    assert bool((se < 0.1 * want.abs().max()).all()), (se, want)
    assert bool(((found.mean(0) - want).abs() < errors * se).all()), (found.mean(0), want, se)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(1.0)], ids=str)
def test_the_steps_likelihood_has_the_gradient_of_the_mean_reward(sampler, steps):
    """But for the last step, which has no noise: there the network is held fixed in the closed form, too."""
    schedule, n = Cosine(logsnr_min=-4, logsnr_max=4), 5
    net = Gain()
    denoiser = Denoiser(net, schedule, X0)
    chain = FullChain(sampler, n)
    loss = PolicyGradient(lambda x: -mean(x**2), StepLikelihood(steps), chain, advantage=Centred())
    found = gradients(loss, denoiser, 120)

    def expected(w):
        """E[-x²] by the variance of z along the chain."""
        times = uniform_times(schedule, n)
        variance = schedule.prior_std().double() ** 2
        for i in range(n):
            t, s = times[i : i + 1], times[i + 1 : i + 2]
            there = Denoiser(_Fixed(w if i < n - 1 else w.detach()), schedule, X0)
            one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            step = sampler.transition(there.given(None), one, t, s)
            noise = step.log_variance.exp().squeeze() if i < n - 1 else 0.0
            variance = step.mean.squeeze() ** 2 * variance + noise
        return -variance

    w = net.w.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad(-expected(w), w)
    near(found[:, 0], want)


class _Fixed(torch.nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, z, t):
        return self.w * z


@pytest.mark.parametrize("draws", [2, 8])
def test_the_bound_is_the_likelihood_where_it_is_tight(draws, rng):
    """Of a Gaussian's own exact denoiser the bound is log p, so that its gradient is that of log p, for any data."""
    schedule = Cosine(logsnr_min=-12, logsnr_max=12)
    net = GaussianNet(schedule)
    denoiser = Denoiser(net, schedule, X0)
    x = 0.7 + 0.4 * torch.randn(64, *SHAPE, dtype=torch.float64, generator=rng)
    how, found = BoundLikelihood(draws), []
    for step in range(400):
        draw = Objective(denoiser, {"own": Term(Denoising())}, seed=1).draw(x, step=step)
        value = how(denoiser, Trajectory(FullChain(DDIM(), 1).chain(denoiser, draw), x, [], []), draw).mean()
        found.append(torch.stack(torch.autograd.grad(value, tuple(net.parameters()))))
    mu, log_std = (p.detach().clone().requires_grad_() for p in net.parameters())
    exact_value = torch.distributions.Normal(mu, log_std.exp()).log_prob(x).flatten(1).sum(1).mean()
    near(torch.stack(found), torch.stack(torch.autograd.grad(exact_value, (mu, log_std))))


def test_by_the_bound_a_gaussian_moves_as_its_mean_reward_says():
    """E[mean of x] = m and E[x²] = m² + s²: their gradients in m and log s, by samples and values alone."""
    schedule = Cosine(logsnr_min=-10, logsnr_max=10)
    net = GaussianNet(schedule)
    denoiser = Denoiser(net, schedule, X0)
    loss = PolicyGradient(lambda x: 4 * mean(x), BoundLikelihood(8), FullChain(Heun(), 20), advantage=Centred())
    found = gradients(loss, denoiser, 60)
    near(found[:, 0], torch.tensor(-4.0, dtype=torch.float64), errors=5.0)


@pytest.mark.parametrize("steps", [1, 3])
def test_samples_that_are_used_again_are_followed_by_their_ratio(steps):
    """By densities of torch.distributions, of a chain that was drawn at other weights."""
    schedule, old, new, clip, n = Cosine(logsnr_min=-4, logsnr_max=4), 0.6, 0.9, 0.2, 4
    net, times = Gain(old), uniform_times(schedule, n)
    denoiser, along = Denoiser(net, schedule, X0), FullChain(DDPM(), n)
    loss = PolicyGradient(lambda x: -mean(x**2), StepLikelihood(steps), along, None, Centred(), reuse=2, clip=clip)
    objective = Objective(denoiser, {"own": Term(loss)}, seed=0)
    objective(shape=(256, *SHAPE), step=0)
    chain = along.chain(denoiser, objective.draw(torch.zeros(256, *SHAPE), step=0))
    chosen = loss.likelihood.recorded(chain)
    with torch.no_grad():
        end, kept = chain.run(recorded=range(n))
        z = [each.z for each in kept]
        advantage = Centred()(-mean(end**2)[None])[0].double()

    def log_p(w, i):
        t, s = (times[k].expand(256) for k in (i, i + 1))
        there = DDPM().transition(Denoiser(_Fixed(w), schedule, X0).given(None), z[i].double(), t, s)
        return torch.distributions.Normal(there.mean, (0.5 * there.log_variance).exp()).log_prob(z[i + 1]).flatten(1).sum(1)

    w = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    moved = torch.stack([log_p(w, i) - log_p(torch.tensor(old).double(), i).detach() for i in chosen])
    gain = advantage * torch.where(advantage > 0, moved.clamp(max=clip), moved.clamp(min=-clip)).div(4).exp() * 4
    (want,) = torch.autograd.grad(-(n - 1) / steps * gain.sum(0).mean(), w)
    assert bool(((moved.abs() > clip) & (moved * advantage > 0)).any())
    net.w.data.fill_(new)
    (found,) = torch.autograd.grad(objective(shape=(256, *SHAPE), step=1)["loss"], net.w)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


class Given:
    """A likelihood whose parts (parts, B) are what they are."""

    def __init__(self, values):
        self.values = values

    def require(self, sampler, steps):
        pass

    def recorded(self, chain):
        return ()

    def factor(self, chain):
        return 2.5

    def __call__(self, denoiser, drawn, draw):
        return self.values


def test_the_ratio_is_clipped_where_a_sample_has_become_what_it_deserved():
    own, clip = torch.Generator().manual_seed(0), 0.3
    values = torch.zeros(3, 64, dtype=torch.float64, requires_grad=True)
    loss = PolicyGradient(mean, Given(values), FullChain(DDIM(), 2), None, Centred(), reuse=2, clip=clip)
    objective = Objective(Denoiser(Gain(), Cosine(), X0), {"own": Term(loss)}, seed=0)
    (first,) = torch.autograd.grad(objective(shape=(64, *SHAPE), step=0)["loss"], values)
    advantage = -64 / 2.5 * first[0]
    assert torch.equal(first[0], first[1])
    torch.testing.assert_close(advantage.mean(), torch.zeros(()).double(), rtol=0, atol=1e-7)  # samples are float32
    values.data = 0.5 * torch.randn(3, 64, dtype=torch.float64, generator=own)
    (second,) = torch.autograd.grad(objective(shape=(64, *SHAPE), step=1)["loss"], values)
    moved = values.detach()
    out = ((advantage > 0) & (moved > clip)) | ((advantage < 0) & (moved < -clip))
    assert 20 < int(out.sum()) < 100
    torch.testing.assert_close(second, torch.where(out, 0.0, -2.5 / 64 * advantage * (moved / 4).exp()), rtol=1e-5, atol=1e-9)
    values.data = torch.tensor([-800.0, 800.0]).double().repeat(3, 32)  # further than an exponential of floats goes
    (far,) = torch.autograd.grad(objective(shape=(64, *SHAPE), step=1)["loss"], values)
    assert bool(torch.isfinite(far).all())
    with pytest.raises(ValueError, match=r"returns \(parts, 32\)"):
        objective(shape=(32, *SHAPE), step=2)


class Listening(torch.nn.Module):
    """w z, which writes down the labels that it is told."""

    def __init__(self, told):
        super().__init__()
        self.w, self.told = torch.nn.Parameter(torch.ones(())), told

    def forward(self, z, t, label):
        self.told.append(label.tolist())
        return self.w * z


def counted(judged):
    """A reward that writes down how many images it is asked about."""

    def reward(images):
        judged.append(len(images))
        return mean(images)

    return reward


def test_a_batch_of_samples_serves_so_many_steps_under_its_own_conditions():
    told, judged = [], []
    loss = PolicyGradient(counted(judged), BoundLikelihood(2), FullChain(DDIM(), 4), reuse=3)
    objective = Objective(Denoiser(Listening(told), Cosine(), V), {"denoise": Term(Denoising()), "own": Term(loss)}, seed=0)

    def calls(step, first=0):
        """The labels of a step's calls, but for the base loss's own."""
        told.clear()
        label = torch.arange(2) + 10 * step + first
        objective(torch.zeros(2, *SHAPE), cond={"label": label}, step=step, shard=Shard(first, 4))["loss"].backward()
        return [labels for labels in told if labels != label.tolist() or step in (0, 3)]

    assert len(calls(0)) == 2 * 1 + 4 + 2 * 2  # the base loss's and the bound's two are made again in the backward pass
    calls(0, first=2)  # another part of the batch has samples of its own
    assert calls(1) == [[0, 1]] * 4
    assert calls(1) == [[0, 1]] * 4
    assert calls(1, first=2) == [[2, 3]] * 4
    assert calls(2) == [[0, 1]] * 4
    assert len(judged) == 2
    assert len(calls(3)) == 10
    assert len(judged) == 3
    graphs = [x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.grad_fn is not None and x.shape == (2, *SHAPE)]
    assert graphs == []  # of the base loss's call, which belonged to the same draw
    assert len(copy.deepcopy(objective).terms) == 2
    with torch.no_grad():
        objective.eval()(torch.zeros(2, *SHAPE), cond={"label": torch.arange(2)}, step=4)
    assert len(judged) == 4
    objective.train()
    assert calls(4) == [[30, 31]] * 4
    objective = Objective(Denoiser(Listening(told), Cosine(), V), {"denoise": Term(Denoising()), "own": Term(loss)}, seed=0)
    assert [50, 51] not in calls(4)
    assert len(judged) == 5  # another model has drawn none of them
    objective.load_state_dict(objective.state_dict())
    assert [50, 51] not in calls(4)
    assert len(judged) == 6  # nor has one with other weights
    calls(3)
    assert len(judged) == 7  # nor a training that begins anew
    with torch.no_grad():
        objective(torch.zeros(2, *SHAPE), cond={"label": torch.arange(2)}, step=3, shard=Shard(0, 4))
        assert len(judged) == 7
        objective(torch.zeros(2, *SHAPE), cond={"label": torch.arange(2)}, step=9, shard=Shard(0, 4))
    assert len(judged) == 8
    assert calls(4) == [[30, 31]] * 4  # who looked on has changed nothing
    with pytest.raises(ValueError, match="leave out generator, or reuse"):
        objective(torch.zeros(2, *SHAPE), cond={"label": torch.arange(2)}, generator=torch.Generator())


def test_samples_with_guidance_serve_again_and_conditions_are_their_own():
    told, judged = [], []
    denoiser = Denoiser(Listening(told), Cosine(), V, null={"label": 9})
    loss = PolicyGradient(counted(judged), BoundLikelihood(2), FullChain(DDIM(), 4, guidance=3.0), reuse=2)
    objective, label = Objective(denoiser, {"own": Term(loss)}, seed=0), torch.tensor([1, 2])
    for step in range(4):
        told.clear()
        objective(shape=(2, *SHAPE), cond={"label": label}, step=step)
        label.fill_(7)
        assert told[-1] == ([1, 2] if step < 2 else [7, 7])
    assert len(judged) == 2


@pytest.mark.parametrize("likelihood", [StepLikelihood(2), BoundLikelihood(2)], ids=["steps", "bound"])
def test_a_generator_may_draw_what_serves_once(likelihood):
    loss = PolicyGradient(mean, likelihood, FullChain(DDPM(), 6))
    objective = Objective(Denoiser(Gain(), Cosine(), X0), {"own": Term(loss)}, seed=0)
    assert torch.isfinite(objective(shape=(4, *SHAPE), generator=torch.Generator().manual_seed(0))["loss"])


def test_normalised_advantages_do_not_know_the_rewards_unit(rng):
    r = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(Normalised()(7 * r + 3), Normalised()(r))
    torch.testing.assert_close(Normalised()(r).std(1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(Normalised()(torch.ones(2, 4)), torch.zeros(2, 4))
    left_out = torch.stack([r[:, i] - torch.cat([r[:, :i], r[:, i + 1 :]], 1).mean(1) for i in range(5)], 1)
    torch.testing.assert_close(Centred()(r), left_out)


def test_a_group_is_told_what_its_first_is_told():
    told = []
    denoiser = Denoiser(Listening(told), Cosine(), V)
    loss = PolicyGradient(mean, BoundLikelihood(2), FullChain(DDIM(), 2), group=3)
    objective = Objective(denoiser, {"own": Term(loss)}, seed=0)
    objective(shape=(6, *SHAPE), cond={"label": torch.arange(6)})["loss"].backward()
    assert told
    assert all(labels == [0, 0, 0, 3, 3, 3] for labels in told)


def test_a_reward_of_two_parameters_is_handed_the_draw():
    denoiser = Denoiser(Gain(), Cosine(), X0)
    seen = []

    def reward(images, draw):
        seen.append(draw.extra["goal"])
        return -(mean(images) - draw.extra["goal"]).abs()

    objective = Objective(denoiser, {"own": Term(PolicyGradient(reward, BoundLikelihood(2), FullChain(DDIM(), 2)))}, seed=0)
    objective(shape=(4, *SHAPE), extra={"goal": torch.arange(4.0)})
    assert seen[0].tolist() == [0, 1, 2, 3]


def test_contrast_at_the_old_model_is_the_denoising_loss_of_good_less_bad_samples():
    """2b (2r - 1) times half its gradient."""
    schedule, b, most = Cosine(logsnr_min=-6, logsnr_max=6), 0.3, 2.0
    net = Gain()
    denoiser, old = Denoiser(net, schedule, X0), Denoiser(Gain(), schedule, X0)
    loss = ForwardContrast(mean, old, FullChain(DDIM(), 3), strength=b, most=most, space=X0)
    objective = Objective(denoiser, {"own": Term(loss)}, seed=0)
    objective(shape=(32, *SHAPE), step=0)["loss"].backward()
    draw = objective.draw(torch.zeros(32, *SHAPE), step=0)
    with torch.no_grad():
        end, _ = FullChain(DDIM(), 3).chain(denoiser, draw).run()
        r = 0.5 + 0.5 * (Normalised()(mean(end)[None])[0] / most).clamp(-1, 1)
        t, noise = draw.t, draw.normal("contrast")
        alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
        z = alpha * end + sigma * noise
    w = net.w.detach().clone().requires_grad_()
    error = (w * z - end).square().flatten(1).mean(1)
    (want,) = torch.autograd.grad((draw.importance * b * (2 * r - 1) * error).mean(), w)
    torch.testing.assert_close(net.w.grad, want.to(net.w.grad), rtol=1e-4, atol=1e-6)


def test_contrast_away_from_the_old_model_is_its_formula():
    schedule = Cosine(logsnr_min=-6, logsnr_max=6)
    denoiser, old = Denoiser(Gain(0.7), schedule, X0), Denoiser(Gain(0.5), schedule, X0)
    loss = ForwardContrast(mean, old, FullChain(DDIM(), 3), strength=0.4, most=1.5, space=X0)
    draw = Objective(denoiser, {"own": Term(loss)}, seed=0).draw(torch.zeros(16, *SHAPE), step=0)
    with torch.no_grad():
        found = loss(denoiser, draw)
        end, _ = FullChain(DDIM(), 3).chain(old, draw).run()
        r = 0.5 + 0.5 * (Normalised()(mean(end)[None])[0] / 1.5).clamp(-1, 1)
        t, noise = draw.t, draw.normal("contrast")
        alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
        z = alpha * end + sigma * noise
        plus, less = (0.6 * 0.5 + 0.4 * 0.7) * z, (1.4 * 0.5 - 0.4 * 0.7) * z
        want = r * (plus - end).square().flatten(1).mean(1) + (1 - r) * (less - end).square().flatten(1).mean(1)
    torch.testing.assert_close(found, draw.importance * want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda old: PolicyGradient(many, StepLikelihood(3), FullChain(DDPM(), 6)),
        lambda old: PolicyGradient(many, BoundLikelihood(4, constant), FullChain(DDIM(), 6)),
        lambda old: PolicyGradient(many, StepLikelihood(3), FullChain(DDPM(), 6), reuse=4),
        lambda old: ForwardContrast(many, old, FullChain(DDIM(), 6), strength=0.2),
    ],
    ids=["steps", "bound", "steps, reused", "contrast"],
)
def test_a_count_without_a_gradient_rises(loss):
    torch.manual_seed(0)
    schedule = Cosine(logsnr_min=-8, logsnr_max=8)

    def fresh():
        return Denoiser(GaussianNet(schedule, -0.3, -1.0), schedule, X0)

    denoiser = fresh()
    objective = Objective(denoiser, {"own": Term(loss(fresh()))}, seed=0)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-2)
    for step in range(40):
        optimizer.zero_grad()
        objective(shape=(64, *SHAPE), step=step)["loss"].backward()
        optimizer.step()
    share = 0.5 * math.erfc(0.3 / math.exp(-1.0) / math.sqrt(2))
    with torch.no_grad():
        draw = objective.draw(torch.zeros(256, *SHAPE), step=99)
        end, _ = FullChain(DDIM(), 12).chain(denoiser, draw).run()
    assert float(many(end).double().mean()) / 4 > share + 0.15


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no density"):
        PolicyGradient(mean, StepLikelihood(2), FullChain(DDIM(), 10))
    with pytest.raises(ValueError, match="choose 1 to 4"):
        PolicyGradient(mean, StepLikelihood(5), FullChain(DDPM(), 5))
    with pytest.raises(ValueError, match="an even number"):
        BoundLikelihood(3)
    with pytest.raises(ValueError, match="group is 2 or more"):
        PolicyGradient(mean, group=1)
    with pytest.raises(ValueError, match="reuse is 1 or more"):
        PolicyGradient(mean, reuse=0)
    with pytest.raises(ValueError, match="clip above 0"):
        PolicyGradient(mean, clip=0.0)
    with pytest.raises(ValueError, match="passes no gradient"):
        PolicyGradient(mean, along=FullChain(DDPM(), 5, AllSteps()))
    with pytest.raises(ValueError, match="takes a reward"):
        PolicyGradient(ImageLoss(mean))
    with pytest.raises(ValueError, match="above 0"):
        ForwardContrast(mean, strength=0.0)
    denoiser = Denoiser(Gain(), Cosine(), X0)
    with pytest.raises(ValueError, match="one value per image"):
        drawn(PolicyGradient(lambda x: x.mean(), BoundLikelihood(2), FullChain(DDIM(), 2)), denoiser, 4)
    with pytest.raises(ValueError, match="groups of 3"):
        drawn(PolicyGradient(mean, BoundLikelihood(2), FullChain(DDIM(), 2), group=3), denoiser, 4)


def test_minus_a_penalty_is_a_reward(rng):
    x = torch.randn(3, *SHAPE, generator=rng)
    assert torch.equal(minus(total_variation)(x), -total_variation(x))
    assert torch.equal(minus(lambda x, draw: draw * mean(x))(x, 2.0), -2.0 * mean(x))


@pytest.mark.parametrize(
    "loss",
    [
        lambda: PolicyGradient(mean, StepLikelihood(2), FullChain(DDPM(), 4)),
        lambda: PolicyGradient(mean, BoundLikelihood(2), FullChain(DDIM(), 4)),
        lambda: ForwardContrast(mean, Denoiser(Gain(0.5), Cosine(), X0), FullChain(DDIM(), 4)),
    ],
    ids=["steps", "bound", "contrast"],
)
def test_a_network_that_drops_features_is_followed_without_dropping_any(loss):
    """In the backward pass too, which recomputes what was called: samples and their likelihood are of one function."""

    class Dropping(Gain):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, z, t):
            return self.w * self.drop(z)

    net = Dropping()
    found = []
    for mode in (True, False):
        objective = Objective(Denoiser(net, Cosine(), X0), {"own": Term(loss())}, seed=0)
        net.train(mode)
        (slope,) = torch.autograd.grad(objective(shape=(8, *SHAPE), step=0)["loss"], net.w)
        found.append(slope)
    torch.testing.assert_close(*found)
