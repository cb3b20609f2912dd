"""The bound as a loss: unbiased for the measured bound, Improved DDPM's hybrid, VDM's learned schedule."""

import math

import pytest
import torch

import xhat
from oracles import GaussianData, ScaledX0, exact, noisy
from xhat import Denoising, Hybrid, Objective, Term, VariationalBound, variational_bound
from xhat.bound.eight_bit import DiscretizedGaussian
from xhat.bound.terms import bits_per_dim, prior_term, step_term
from xhat.diffusion.gaussians import Gaussian, kl, posterior
from xhat.losses.variational import ScheduleVariance
from xhat.tensors import over_images

LN2 = math.log(2)


def eight_bit(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).double() * 2 / 255 - 1


class TwoHeads(torch.nn.Module):
    """A mean and a variance head with one parameter each."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.log_variance = torch.nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))

    def forward(self, z, t):
        return torch.cat([self.mean * z, self.log_variance * torch.ones_like(z)], dim=1)


def fixed_draw(objective, x0, t, noise):
    """A draw at given times with given noise."""
    denoiser = objective.denoiser
    z = noisy(denoiser.schedule, t, x0, noise)
    one = torch.ones_like(t)
    return xhat.Draw(x0, t, noise, z, denoiser(z, t), one, None, 0, 0)


def objective_of(denoiser, loss):
    return Objective(denoiser, {"bound": Term(loss)})


@pytest.mark.parametrize("target", [xhat.NOISE, xhat.targets.POSTERIOR_MEAN, xhat.V], ids=lambda t: t.name)
def test_the_mean_over_all_steps_is_the_measured_bound(target):
    """E_t of the loss is the sum of all T terms: same images, same noise."""
    schedule = xhat.Discrete.linear_beta(20, 1e-3, 0.2)
    denoiser = xhat.Denoiser(ScaledX0(schedule, target), schedule, target)
    objective = objective_of(denoiser, VariationalBound())
    x0 = eight_bit(1, 1, 2, 2)
    noise = torch.randn(21, 1, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    index = torch.arange(1, 21)
    draw = fixed_draw(objective, x0.expand(20, -1, -1, -1), schedule.time(index).double(), noise[1:, 0])
    loss = objective.terms["bound"].loss(denoiser, draw)
    measured = variational_bound(denoiser, x0, noise=lambda i: noise[i])
    torch.testing.assert_close(loss.mean(), measured.bits_per_dim[0], rtol=1e-9, atol=0)


def test_continuous_time_is_vdms_three_losses():
    schedule = xhat.schedules.LinearLogSNR()
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.NOISE), schedule, xhat.NOISE)
    objective = objective_of(denoiser, VariationalBound())
    x0, t = eight_bit(16, 1, 2, 2), torch.linspace(0.01, 0.99, 16, dtype=torch.float64)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draw = fixed_draw(objective, x0, t, noise)
    got = objective.terms["bound"].loss(denoiser, draw)
    error = (noise - draw.prediction.noise).flatten(1).square().sum(1)
    diffusion = 0.5 * 18.3 * error
    g1, g0 = 5.0, -13.3
    var1, mean1 = 1 / (1 + math.exp(-g1)), x0.flatten(1) * math.sqrt(1 / (1 + math.exp(g1)))
    prior = 0.5 * (var1 + mean1**2 - 1 - math.log(var1)).sum(1)
    eps = draw.normal("decoder")
    rescaled = x0 + math.exp(g0 / 2) * eps
    levels = torch.arange(256, dtype=torch.float64) * 2 / 255 - 1
    logits = -0.5 * math.exp(-g0) * (rescaled.unsqueeze(-1) - levels) ** 2
    chosen = ((x0 + 1) * 127.5).round().long().unsqueeze(-1)
    reconstruction = -logits.log_softmax(-1).gather(-1, chosen).flatten(1).sum(1)
    torch.testing.assert_close(got, (prior + diffusion + reconstruction) / (4 * LN2), rtol=1e-7, atol=0)


@pytest.mark.trap(10)
def test_hybrid_is_improved_ddpms_loss():
    """mse + lambda · T · mean_t(L_t) with lambda = 0.001; the bound trains the variance head alone."""
    schedule = xhat.Discrete.cosine_beta(40)
    net = TwoHeads()
    denoiser = xhat.Denoiser(net, schedule, xhat.NOISE, variance=xhat.variances.LEARNED)
    objective = objective_of(denoiser, Hybrid())
    x0 = eight_bit(40, 1, 2, 2)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = schedule.time(torch.arange(1, 41)).double()
    draw = fixed_draw(objective, x0, t, noise)
    got = objective.terms["bound"].loss(denoiser, draw)

    simple = (noise - draw.prediction.raw).square().flatten(1).mean(1)
    own = []
    for i in range(40):
        here, s = t[i : i + 1], t[i : i + 1] - 1 / 40
        prediction = draw.prediction.rows(torch.tensor([i]))
        p = denoiser.step_back(prediction, s.clamp(min=0))
        if i == 0:
            own.append(-DiscretizedGaussian(p.mean, p.log_variance).log_prob(x0[:1]))
        else:
            own.append(kl(posterior(schedule, x0[i : i + 1], prediction.z, here, s), Gaussian(p.mean, p.log_variance)))
    vb = 40 * torch.cat(own) / (4 * LN2) + bits_per_dim(prior_term(schedule, x0), x0)
    torch.testing.assert_close(got, simple + 0.001 * vb, rtol=1e-9, atol=0)

    def gradients(value):
        return [
            g if g is None else float(g) for g in torch.autograd.grad(value, [net.mean, net.log_variance], retain_graph=True)
        ]

    of_simple = torch.autograd.grad(simple.mean(), net.mean, retain_graph=True)[0]
    of_bound = torch.autograd.grad(vb.mean(), net.log_variance, retain_graph=True)[0]
    mean, variance = (float(g) for g in torch.autograd.grad(got.mean(), [net.mean, net.log_variance]))
    assert mean == pytest.approx(float(of_simple), rel=1e-12)
    assert variance == pytest.approx(0.001 * float(of_bound), rel=1e-9)
    assert abs(variance) > 1e-6


@pytest.mark.trap(10)
def test_the_general_form_trains_everything_with_the_bound():
    """reconstruction + beta · KL without the stop-gradient equals two terms."""
    schedule = xhat.Discrete.cosine_beta(40)
    denoiser = xhat.Denoiser(TwoHeads(), schedule, xhat.V, variance=xhat.variances.LEARNED)
    simple = Denoising(xhat.V, norm=xhat.norms.absolute)
    one = Objective(denoiser, {"hybrid": Term(Hybrid(0.3, simple, xhat.losses.variational.everything))})
    two = Objective(denoiser, {"simple": Term(simple), "bound": Term(VariationalBound(), weight=0.3)})
    x0 = eight_bit(8, 1, 2, 2)
    a, b = one(x0)["loss"], two(x0)["loss"]
    torch.testing.assert_close(a, b)
    parameters = list(denoiser.net.parameters())
    for g, h in zip(torch.autograd.grad(a, parameters), torch.autograd.grad(b, parameters), strict=True):
        torch.testing.assert_close(g, h)


def test_a_variance_head_that_is_not_there_is_refused():
    schedule = xhat.Discrete.cosine_beta(40)
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    with pytest.raises(ValueError, match="use variance LEARNED"):
        objective_of(denoiser, Hybrid())(eight_bit(4, 1, 2, 2))


@pytest.mark.parametrize(
    "loss",
    [Hybrid(), VariationalBound(xhat.losses.variational.variance_only), VariationalBound()],
    ids=["hybrid", "head", "all"],
)
def test_continuous_time_has_no_variance_to_learn(loss):
    """Its bound does not depend on the variance: the head would get no gradient, silently."""
    denoiser = xhat.Denoiser(TwoHeads(), xhat.Cosine(), xhat.V, variance=xhat.variances.LEARNED)
    with pytest.raises(ValueError, match="continuous time has no reverse variance to learn: use linear_beta or cosine_beta"):
        objective_of(denoiser, loss)(eight_bit(4, 1, 2, 2))


@pytest.mark.parametrize(
    "schedule", [xhat.schedules.LinearLogSNR(), xhat.Discrete.linear_beta(1000)], ids=["continuous", "discrete"]
)
def test_a_latent_is_refused_by_the_loss_too(schedule):
    """At whatever step: here one far from the decoder's."""
    objective = objective_of(exact(GaussianData(), schedule), VariationalBound())
    x0, t = torch.randn(4, 1, 2, 2).double(), torch.full((4,), 0.5, dtype=torch.float64)
    draw = fixed_draw(objective, x0, t, torch.randn_like(x0))
    with pytest.raises(ValueError, match=r"^reconstruction: .*8-bit"):
        objective.terms["bound"].loss(objective.denoiser, draw)


@pytest.mark.trap(12)
def test_the_gradient_is_finite_at_every_step_and_for_absurd_networks():
    schedule = xhat.Discrete.linear_beta(1000)
    for scale in (0.0, 1.0, 1e4):
        net = TwoHeads()
        net.mean.data.fill_(scale)
        denoiser = xhat.Denoiser(net, schedule, xhat.NOISE, variance=xhat.variances.LEARNED)
        objective = objective_of(denoiser, VariationalBound())
        t = schedule.time(torch.tensor([1, 2, 3, 500, 999, 1000])).double()
        x0 = eight_bit(6, 1, 2, 2)
        draw = fixed_draw(objective, x0, t, torch.randn(x0.shape, dtype=torch.float64))
        loss = objective.terms["bound"].loss(denoiser, draw)
        assert torch.isfinite(loss).all()
        for g in torch.autograd.grad(loss.sum(), list(net.parameters())):
            assert torch.isfinite(g)


@pytest.mark.parametrize("variance", [xhat.variances.POSTERIOR, xhat.variances.FORWARD], ids=["posterior", "forward"])
def test_its_effective_weighting_is_the_weight_of_the_noise_error(variance):
    """The derivative of the loss with respect to the squared error, by a change of the error."""
    schedule = xhat.Discrete.linear_beta(50, 1e-3, 0.2)
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.NOISE), schedule, xhat.NOISE, variance=variance)
    loss = VariationalBound()
    t = schedule.time(torch.arange(2, 51)).double()
    x0 = eight_bit(49, 1, 2, 2)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = noisy(schedule, t, x0, noise)

    def value(shift):
        prediction = xhat.diffusion.denoiser.Prediction(denoiser, z, t, noise + shift, None)
        return loss(denoiser, xhat.Draw(x0, t, noise, z, prediction, t, None, 0, 0))

    slope = value(1.0) - value(0.0)  # the mean squared error grows by 1
    torch.testing.assert_close(slope, loss.noise_weight(denoiser, schedule.logsnr(t)), rtol=1e-6, atol=0)


def test_in_continuous_time_every_level_has_the_bounds_own_weight():
    denoiser = exact(GaussianData(), xhat.Cosine())
    weighting = objective_of(denoiser, VariationalBound()).effective_weighting(torch.linspace(-8, 8, 9))
    torch.testing.assert_close(weighting, torch.full((9,), 1 / LN2))


@pytest.mark.parametrize("schedule", [xhat.Flow(t_min=0.2), xhat.Cosine(-15, 20)], ids=["flow", "cosine"])
def test_its_effective_weighting_in_continuous_time_is_that_of_the_times_it_draws(schedule):
    """E over [t_min, 1] of the loss is the integral over them: the factor 1 - t_min, and nothing below the decoder's latent."""
    denoiser, loss = exact(GaussianData(), schedule), VariationalBound()
    t = torch.tensor([0.0005, 0.25, 0.5, 0.9], dtype=torch.float64).clamp(min=schedule.t_min)
    x0 = eight_bit(4, 1, 2, 2)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = noisy(schedule, t, x0, noise)

    def value(error):
        raw = denoiser.target.of(schedule, t, *_moved(schedule, z, t, noise, error))
        prediction = xhat.diffusion.denoiser.Prediction(denoiser, z, t, raw, None)
        return loss(denoiser, xhat.Draw(x0, t, noise, z, prediction, t, None, 0, 0))

    slope = value(1.0) - value(0.0)  # the mean squared error of the noise grows by 1
    torch.testing.assert_close(slope, loss.noise_weight(denoiser, schedule.logsnr(t)), rtol=1e-6, atol=1e-9)


def _moved(schedule, z, t, noise, error):
    """x0 and noise of a prediction whose noise is off by `error` everywhere."""
    wrong = noise + error
    return (z - over_images(schedule.sigma(t), z) * wrong) / over_images(schedule.alpha(t), z), wrong


def test_off_the_grid_the_step_starts_at_the_drawn_time():
    """Between t = i/T and (i+1)/T the KL of a step from t itself, down by 1/T: it joins the grid's values smoothly."""
    schedule = xhat.Discrete.linear_beta(20, 1e-3, 0.2)
    denoiser = xhat.Denoiser(ScaledX0(schedule, xhat.V), schedule, xhat.V)
    objective = objective_of(denoiser, VariationalBound())
    t = torch.tensor([10.0, 10.25, 10.5, 10.75, 11.0], dtype=torch.float64) / 20
    x0 = eight_bit(1, 1, 2, 2).expand(5, -1, -1, -1)
    noise = torch.randn(1, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).expand(5, -1, -1, -1)
    draw = fixed_draw(objective, x0, t, noise)
    loss = objective.terms["bound"].loss(denoiser, draw)
    nats = 20 * step_term(denoiser, draw.prediction, x0, noise, t, t - 1 / 20) + prior_term(schedule, x0)
    torch.testing.assert_close(loss, nats / (4 * LN2), rtol=1e-9, atol=0)
    assert (loss.diff().sign() == loss.diff().sign()[0]).all()  # a step rounded to the grid would jump
    first = fixed_draw(objective, x0, torch.tensor([1.0, 1.3, 1.9, 2.0, 2.0], dtype=torch.float64) / 20, noise)
    assert torch.isfinite(objective.terms["bound"].loss(denoiser, first)).all()


class Scaled(torch.nn.Module):
    """A network with a weight of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight = inner, torch.nn.Parameter(torch.tensor(0.9, dtype=torch.float64))

    def forward(self, z, t):
        return self.weight * self.inner(z, t)


def learned_setting():
    data = GaussianData(std=0.1)
    schedule = xhat.schedules.Learned(logsnr_min=-6, logsnr_max=9, features=16).double()
    denoiser = exact(data, schedule, xhat.NOISE)
    t = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    generator = torch.Generator().manual_seed(0)
    x0 = data.sample(512, generator)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    return denoiser, x0, t, noise


def test_schedule_variance_trains_the_shape_alone_and_by_the_right_amount():
    denoiser, x0, t, noise = learned_setting()
    schedule = denoiser.schedule
    denoiser.net = Scaled(denoiser.net)
    loss = ScheduleVariance()

    def value():
        draw = fixed_draw(objective_of(denoiser, loss), x0, t, noise)
        return loss(denoiser, draw).mean()

    parameters = dict(denoiser.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(value(), list(parameters.values()), allow_unused=True), strict=True))
    trained = {id(p) for p in schedule.shape_parameters()}
    shape = {name for name, p in parameters.items() if id(p) in trained}
    assert len(shape) == 4
    assert {name for name, g in gradients.items() if g is not None and g.abs().sum() > 0} == shape
    for name in shape:
        p, g = parameters[name], gradients[name].flatten()
        place, h = int(g.abs().argmax()), 1e-6
        flat = p.data.reshape(-1)
        flat[place] += h
        up = value().item()
        flat[place] -= 2 * h
        down = value().item()
        flat[place] += h
        assert (up - down) / (2 * h) == pytest.approx(float(g[place]), rel=1e-5)
    assert schedule.gamma_0.grad is None


def test_a_learned_schedule_lowers_the_variance_and_leaves_the_bound():
    denoiser, x0, t, _ = learned_setting()
    schedule, loss = denoiser.schedule, ScheduleVariance()
    objective = objective_of(denoiser, loss)
    optimizer = torch.optim.Adam(schedule.shape_parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(5)

    def squares(repeats=1):
        images, times = x0.repeat(repeats, 1, 1, 1), t.repeat(repeats)
        noise = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        return loss(denoiser, fixed_draw(objective, images, times, noise))

    def spread_and_mean():
        rates = squares(40).detach().sqrt()
        return float(rates.var()), float(rates.mean())

    (spread_before, bound_before) = spread_and_mean()
    for _ in range(60):
        optimizer.zero_grad()
        squares().mean().backward()
        optimizer.step()
    spread, bound = spread_and_mean()
    assert spread < 0.5 * spread_before
    assert bound == pytest.approx(bound_before, rel=0.03)


def test_schedule_variance_needs_a_learned_schedule():
    denoiser = exact(GaussianData(), xhat.Cosine())
    with pytest.raises(ValueError, match="Cosine has nothing to learn"):
        objective_of(denoiser, ScheduleVariance())(torch.randn(4, 1, 2, 2).double())
