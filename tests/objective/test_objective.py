"""The objective: reduction, shared and sharded draws, gates, weights relative to the bound, gradients."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import xhat
from oracles import SCHEDULES, SHAPE, Constant, GaussianData, MixtureData, ScaledX0, exact, inner_times
from xhat import FLOW, NOISE, X0, Denoiser, Denoising, ImageLoss, Objective, Shard, Term, V, weightings
from xhat.diffusion.times import Adaptive, LogitNormal, LogNormalSigma, LossSecondMoment, Stratified, Uniform
from xhat.diffusion.weightings import between
from xhat.objective.draw import Draw
from xhat.objective.gates import every, randomly
from xhat.objective.terms import Loss
from xhat.tensors import image_mean, over_images

EVERYWHERE = between(-math.inf, math.inf)


def close(a, b, rtol=1e-7, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def simple(schedule="cosine", target=V, terms=None, **kwargs):
    """An objective on the one-parameter network; by default with the noise loss."""
    on = SCHEDULES[schedule]()
    return Objective(Denoiser(ScaledX0(on, target), on, target), terms or {"denoise": Term(Denoising())}, **kwargs)


@pytest.fixture
def images(rng):
    return MixtureData().sample(10, rng)


class Fixed(Loss):
    """A loss with given values per image."""

    def __init__(self, *values, at_drawn_time=True):
        super().__init__()
        self.values, self.at_drawn_time = torch.tensor(values, dtype=torch.float64), at_drawn_time

    def forward(self, denoiser, draw):
        return self.values


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.trap(8)
def test_weight_and_error_of_different_images_never_meet(width):
    """w = (1, 0), err = (0, 1): the mean of products is 0; (B, 1)·(B,) would give 1/4. Also for images of width B = 2."""
    schedule = SCHEDULES["cosine"]()
    x0 = torch.zeros(2, 1, 2, width, dtype=torch.float64)
    x0[1] = 1.0
    denoiser = Denoiser(Constant(torch.zeros(1, 1, 2, width, dtype=torch.float64)), schedule, X0)
    objective = Objective(
        denoiser, {"d": Term(Denoising(space=X0, weighting=lambda logsnr, schedule: logsnr.new_tensor([1.0, 0.0])))}
    )
    assert objective(x0)["loss"].item() == 0
    objective.terms["d"].loss.weighting = lambda logsnr, schedule: logsnr.new_tensor([0.0, 1.0])
    assert objective(x0)["loss"].item() == pytest.approx(0.5)


@pytest.mark.trap(8)
def test_importance_and_loss_of_different_images_never_meet():
    class Skewed(Stratified):
        def sample(self, schedule, n, generator=None, *, step=0):
            return torch.full((n,), 0.5), torch.tensor([1.0, 0.0])

    assert simple(terms={"d": Term(Fixed(0.0, 1.0))}, times=Skewed())(torch.zeros(2, *SHAPE).double())["loss"].item() == 0


def test_the_sum_of_terms_by_hand(images):
    """loss = sum_k weight_k mean(importance value_k); a term at no drawn time has no importance; terms come unweighted."""
    ten = [float(i) for i in range(10)]
    objective = simple(
        terms={"a": Term(Fixed(*ten), weight=0.5), "b": Term(Fixed(*ten, at_drawn_time=False), weight=-2.0)},
        times=LogitNormal(),
    )
    values = objective(images, step=4)
    draw = objective.draw(images, step=4)
    a, b = (draw.importance * torch.tensor(ten)).mean().double(), torch.tensor(4.5).double()
    assert set(values) == {"loss", "a", "b"}
    close(values["a"], a, rtol=1e-6)
    close(values["b"], b)
    close(values["loss"], 0.5 * a - 2 * b, rtol=1e-6)


def test_every_term_sees_one_draw_and_one_network_call(images):
    seen = []

    class Spy(Loss):
        def forward(self, denoiser, draw):
            seen.append(draw)
            return draw.prediction.x0.flatten(1).mean(1)

    objective = simple(terms={"a": Term(Spy()), "b": Term(Spy())})
    calls = []
    objective.denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    objective(images)
    assert seen[0] is seen[1]
    assert len(calls) == 1


def test_the_draw_is_what_it_says(images):
    """z = alpha x0 + sigma noise at the drawn t; the prediction is the denoiser's at (z, t)."""
    objective = simple()
    draw = objective.draw(images, step=2)
    schedule = objective.denoiser.schedule
    z = over_images(schedule.alpha(draw.t), images) * images + over_images(schedule.sigma(draw.t), images) * draw.noise
    close(draw.z, z)
    close(draw.prediction.x0, objective.denoiser(draw.z, draw.t).x0, rtol=0, atol=0)
    assert draw.x0 is images


@pytest.mark.parametrize("gamma", [0.1, 0.5])
@pytest.mark.trap(17)
def test_input_perturbation_moves_what_the_network_sees_and_not_the_target(images, gamma):
    """Ning et al. 2023: the network sees alpha x0 + sigma (noise + gamma xi), xi ~ N(0, I), against the clean noise."""
    plain, perturbed, shown = simple(target=NOISE), simple(target=NOISE, input_perturbation=gamma), []
    perturbed.denoiser.net.register_forward_pre_hook(lambda net, inputs: shown.append(inputs[0]))
    a, b = plain.draw(images, step=1), perturbed.draw(images, step=1)
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("noise", "t", "z"))
    xi = (shown[0] - a.z) / (gamma * over_images(plain.denoiser.schedule.sigma(a.t), images))
    assert abs(xi.std().item() - 1) < 5 / (2 * xi.numel()) ** 0.5
    assert abs(torch.corrcoef(torch.stack([xi.flatten(), a.noise.flatten()]))[0, 1].item()) < 5 / xi.numel() ** 0.5
    error = (a.noise - plain.denoiser(shown[0], a.t).raw).flatten(1).square().mean(1)
    close(perturbed(images, step=1)["denoise"], error.mean(), rtol=1e-6)


class NoiseTimesK(nn.Module):
    """noise_hat = k z/sigma."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.k = schedule, nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, z, t):
        return self.k * z / over_images(self.schedule.sigma(t), z)


@pytest.mark.parametrize("space", [NOISE, X0, V, FLOW, xhat.targets.SCORE, xhat.targets.edm(0.5)], ids=str)
@pytest.mark.trap(30)
def test_input_perturbation_teaches_the_same_in_every_space(space):
    """On data 0 the network sees sigma (noise + gamma xi): the best k is 1/(1 + gamma²) in any space."""
    schedule, gamma = SCHEDULES["cosine"](), 0.5
    net = NoiseTimesK(schedule)
    weight = weightings.convert_weighting(weightings.constant, NOISE, space)
    objective = Objective(
        Denoiser(net, schedule, NOISE), {"d": Term(Denoising(space, weight))}, input_perturbation=gamma
    ).eval()
    x0 = torch.zeros(40_000, 1, 1, 1, dtype=torch.float64)

    def slope(k):
        with torch.no_grad():
            net.k.fill_(k)
        return torch.autograd.grad(objective(x0)["loss"], net.k)[0].item()

    at_0, at_1 = slope(0.0), slope(1.0)  # of a parabola
    assert at_0 / (at_0 - at_1) == pytest.approx(1 / (1 + gamma**2), abs=0.01)


@pytest.mark.parametrize("space", [X0, V, FLOW, xhat.targets.edm(0.5)], ids=str)
@pytest.mark.parametrize("target", [NOISE, V, X0], ids=str)
@pytest.mark.trap(30)
def test_a_moved_weighting_is_the_same_loss_under_input_perturbation(images, space, target):
    a, b = (
        simple(target=target, terms={"d": Term(Denoising(s, w))}, input_perturbation=0.4)(images, step=0)["loss"]
        for s, w in ((NOISE, weightings.constant), (space, weightings.convert_weighting(weightings.constant, NOISE, space)))
    )
    close(a, b, rtol=1e-6)


@pytest.mark.trap(14)
def test_x0_hat_far_outside_the_range_keeps_its_gradient():
    """A raw x0 of 50 gets the full gradient 2 (50 - x0)/pixels, in the denoising and in the image loss."""
    schedule = SCHEDULES["cosine"]()
    net = Constant(torch.full((1, *SHAPE), 50.0, dtype=torch.float64))
    x0 = torch.zeros(3, *SHAPE, dtype=torch.float64)
    denoiser = Denoiser(net, schedule, X0)
    loss = Objective(denoiser, {"d": Term(Denoising(space=X0))})(x0)["loss"]
    close(torch.autograd.grad(loss, net.output)[0], torch.full((1, *SHAPE), 2 * 50 / 4).double())
    loss = Objective(denoiser, {"i": Term(ImageLoss(lambda image: image.square().flatten(1).sum(1), weighting=EVERYWHERE))})(
        x0
    )["loss"]
    close(torch.autograd.grad(loss, net.output)[0], torch.full((1, *SHAPE), 2 * 50.0).double())


@pytest.mark.trap(28)
def test_a_penalty_receives_x0_hat_and_nothing_else(images):
    seen = []

    def penalty(*args):
        seen.append(args)
        return args[0].flatten(1).mean(1)

    objective = simple(terms={"i": Term(ImageLoss(penalty))})
    objective(images, step=6)
    draw = objective.draw(images, step=6)
    (args,) = seen
    assert len(args) == 1
    close(args[0], draw.prediction.x0, rtol=0, atol=0)
    assert (args[0] - draw.z).abs().max() > 0.1


SAMPLERS = {
    "stratified": Stratified,
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "second_moment": LossSecondMoment,
    "adaptive": Adaptive,
}


@pytest.mark.parametrize("times", SAMPLERS)
@pytest.mark.parametrize("edges", [(0, 5, 10), (0, 3, 10), (0, 1, 2, 10)], ids=str)
@pytest.mark.parametrize("schedule", ["cosine", "linear_beta"])
@pytest.mark.trap(16)
def test_shards_reproduce_the_one_call_draw(images, times, edges, schedule):
    """Processes, unequal blocks or accumulation: sample k of step n has the same t, noise, z and loss as in one call."""
    whole = simple(schedule, times=SAMPLERS[times](), input_perturbation=0.1).draw(images, step=9)
    objective = simple(schedule, times=SAMPLERS[times](), input_perturbation=0.1)
    for a, b in pairwise(edges):
        part = objective.draw(images[a:b], step=9, shard=Shard(a, 10))
        for name in ("t", "noise", "z", "importance"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[a:b]), name
        close(part.prediction.x0, whole.prediction.x0[a:b], rtol=1e-12)


@pytest.mark.trap(16)
def test_accumulated_gradients_are_the_whole_batchs(images):
    objective = simple()
    (whole,) = torch.autograd.grad(objective(images, step=1)["loss"], objective.denoiser.net.scale)
    total = 0
    for a, b in ((0, 3), (3, 10)):
        loss = objective(images[a:b], step=1, shard=Shard(a, 10))["loss"]
        total = total + (b - a) / 10 * torch.autograd.grad(loss, objective.denoiser.net.scale)[0]
    close(total, whole)


@pytest.mark.parametrize("edges", [(0, 5, 10), (0, 6, 10), (0, 2, 10), (0, 4, 8, 10)], ids=str)
@pytest.mark.parametrize("cls", [LossSecondMoment, Adaptive])
@pytest.mark.trap(15)
def test_a_learned_sampler_learns_once_a_step_however_it_is_divided(images, cls, edges):
    """After three accumulated steps the density is that of three one-call steps."""
    whole, divided = (simple("linear_beta", times=cls()) for _ in range(2))
    for step in range(3):
        whole(images, step=step)
        for a, b in pairwise(edges):
            divided(images[a:b], step=step, shard=Shard(a, 10))
    close(dict(divided.times.state_dict()), dict(whole.times.state_dict()), rtol=1e-5)
    moved = {k: v for k, v in whole.times.state_dict().items() if v.abs().sum() > 0}
    assert moved


def test_a_learned_sampler_learns_the_weighted_uncorrected_losses_and_only_in_training(images):
    objective = simple(
        "linear_beta",
        terms={
            "a": Term(Denoising(space=X0), weight=3.0),
            "b": Term(Fixed(*[7.0] * 10, at_drawn_time=False)),
        },
        times=LossSecondMoment(history=2),
    )
    objective.eval()
    objective(images, step=0)
    assert objective.times.counts.sum() == 0
    objective.train()
    objective(images, step=0)
    draw = objective.draw(images, step=0)
    error = 3 * (draw.x0 - draw.prediction.x0).flatten(1).square().mean(1)
    index = objective.denoiser.schedule.index(draw.t) - 1
    close(objective.times.losses[index].sum(1), error.detach(), rtol=1e-6)


@pytest.mark.trap(9)
def test_the_same_seed_and_step_give_the_same_draw_and_others_do_not(images):
    torch.manual_seed(1)
    a = simple(seed=3).draw(images, step=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    b = simple(seed=3).draw(images, step=5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.z, b.z)
    assert torch.equal(a.normal("own"), b.normal("own"))
    for other in (simple(seed=3).draw(images, step=6), simple(seed=4).draw(images, step=5)):
        assert (other.noise != a.noise).all()
        assert (other.t != a.t).all()
        assert (other.normal("own") != a.normal("own")).all()


def test_an_explicit_generator_decides_the_draw(images):
    objective = simple()
    a, b = (objective.draw(images, step=0, generator=torch.Generator().manual_seed(8)) for _ in range(2))
    assert torch.equal(a.z, b.z)
    assert not torch.equal(a.z, objective.draw(images, step=0, generator=torch.Generator().manual_seed(9)).z)


@pytest.mark.parametrize("gate", [every(3), randomly(0.5)], ids=["every", "randomly"])
def test_a_closed_gate_leaves_its_term_out(images, gate):
    terms = {"a": Term(Denoising()), "b": Term(Denoising(space=X0), weight=10.0, when=gate)}
    objective, alone = simple(terms=terms, seed=1), simple(terms={"a": terms["a"]}, seed=1)
    open_ = 0
    for step in range(8):
        values = objective(images, step=step)
        assert ("b" in values) == gate(1, step)
        open_ += gate(1, step)
        expected = alone(images, step=step)["loss"] + (10 * values["b"] if "b" in values else 0)
        close(values["loss"], expected)
    assert 0 < open_ < 8


class Scalar(Loss):
    def forward(self, denoiser, draw):
        return draw.prediction.x0.mean()


class Column(Loss):
    def forward(self, denoiser, draw):
        return draw.prediction.x0.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize("loss", [Scalar(), Column(), ImageLoss(lambda x: x.mean())], ids=["scalar", "column", "penalty"])
@pytest.mark.trap(8)
def test_a_loss_that_is_not_per_image_is_refused_by_name(images, loss):
    with pytest.raises(ValueError, match="per image"):
        simple(terms={"odd": Term(loss)})(images)


def test_a_scalar_loss_is_refused_with_its_name_even_for_one_image(images):
    with pytest.raises(ValueError, match='"odd"'):
        simple(terms={"odd": Term(Scalar())})(images[:1])


@pytest.mark.parametrize(
    "terms", [{}, {"loss": Term(Denoising())}, {"a.b": Term(Denoising())}], ids=["empty", "loss", "dotted"]
)
def test_impossible_names_are_refused(terms):
    schedule = SCHEDULES["cosine"]()
    with pytest.raises(ValueError, match="term"):
        Objective(Denoiser(ScaledX0(schedule, V), schedule, V), terms)


def test_an_undefined_loss_says_so(images):
    with pytest.raises(NotImplementedError, match="forward"):
        simple(terms={"a": Term(Loss())})(images)


def test_losses_with_parameters_are_the_objectives(images):
    """A learned weighting, a penalty network and a learned schedule are all reached by one optimizer."""
    u, penalty = xhat.LearnedUncertainty(Denoising()), nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0)).double()
    objective = simple("learned", terms={"d": Term(u), "i": Term(ImageLoss(penalty))})
    objective(images)["loss"].backward()
    names = {n: p for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(p is u.gains for p in names.values())
    assert any(p is penalty[1].weight for p in names.values())
    assert any(p is objective.denoiser.net.scale for p in names.values())


@pytest.mark.parametrize(
    ("schedule", "target", "space", "weight"),
    [
        ("cosine", V, NOISE, weightings.constant),
        ("linear_beta", NOISE, NOISE, weightings.p2()),
        ("flow", FLOW, FLOW, weightings.from_density(LogitNormal())),
        ("ve", xhat.targets.edm(0.5), X0, weightings.edm_weight(xhat.targets.edm(0.5))),
        ("discrete_rescaled", V, V, weightings.constant),
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
@pytest.mark.parametrize("times", [Stratified, lambda: LogNormalSigma(0.0, 1.5)], ids=["uniform", "log_normal"])
def test_gradients_by_finite_differences(images, schedule, target, space, weight, times):
    """d loss/d scale of the whole objective, an image term included."""
    terms = {
        "d": Term(Denoising(space=space, weighting=weight)),
        "i": Term(ImageLoss(xhat.penalties.total_variation), weight=0.1),
    }
    objective = simple(schedule, target, terms, times=times()).eval()  # the same draw at each call
    scale = objective.denoiser.net.scale
    (grad,) = torch.autograd.grad(objective(images, step=2)["loss"], scale)
    h, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            scale += sign * h
            values.append(objective(images, step=2)["loss"])
            scale -= sign * h
    assert grad.item() == pytest.approx(((values[0] - values[1]) / (2 * h)).item(), rel=1e-5)


def relative(schedule, target, losses, logsnr):
    on = SCHEDULES[schedule]() if isinstance(schedule, str) else schedule
    terms = {f"t{i}": Term(loss, weight=w) for i, (w, loss) in enumerate(losses)}
    return Objective(Denoiser(ScaledX0(on, target), on, target), terms).effective_weighting(logsnr)


LOGSNR = torch.linspace(-6, 6, 25, dtype=torch.float64)
SNR = LOGSNR.exp()
# dt/d logsnr of the straight flow is sigma alpha/2 = 1/(8 cosh²(logsnr/4)); of the cosine schedule 1/(2 pi cosh(logsnr/2))
COSINE = xhat.Cosine(-math.inf, math.inf)


@pytest.mark.parametrize(
    ("schedule", "target", "loss", "expected"),
    [
        # Kingma & Gao 2023, table 1: noise loss on the cosine schedule w = sech(l/2) (up to 1/pi: here E_t, not E_l)
        (COSINE, V, Denoising(), 1 / (math.pi * torch.cosh(LOGSNR / 2))),
        # v loss on cosine: e^{-l/2} (times the same constant)
        (COSINE, V, Denoising(space=V), 2 / math.pi * torch.exp(-LOGSNR / 2)),
        # x0 loss with min-SNR on cosine
        (COSINE, V, Denoising(X0, weightings.min_snr(5)), SNR.clamp(max=5) / SNR / (math.pi * torch.cosh(LOGSNR / 2))),
        # the flow loss: e^{-l/2} (Kingma & Gao, table 1: "FM-OT" has the weight of v on cosine, e^{-l/2})
        (xhat.Flow(), FLOW, Denoising(space=FLOW), torch.exp(-LOGSNR / 2)),
        # the bound itself and the sigmoid weighting
        (COSINE, V, Denoising(weighting=weightings.elbo), torch.ones_like(SNR)),
        (xhat.Flow(), FLOW, Denoising(weighting=weightings.sigmoid(2.0)), torch.sigmoid(2 - LOGSNR)),
        # EDM: N(l; 2.4, 2.4²) (1 + 4 e^-l), its density in l = -2 ln sigma and weight per noise error; 2 is the bound's ½
        (
            xhat.schedules.VE(1e-4, 1e4),
            xhat.targets.edm(0.5),
            Denoising(
                X0, weightings.product(weightings.from_density(LogNormalSigma()), weightings.edm_weight(xhat.targets.edm(0.5)))
            ),
            torch.exp(-0.5 * ((LOGSNR - 2.4) / 2.4) ** 2) / (2.4 * math.sqrt(2 * math.pi)) * (1 + 4 / SNR) * 2,
        ),
    ],
    ids=["ddpm", "v", "min_snr", "flow", "elbo", "sigmoid", "edm"],
)
def test_effective_weighting_by_hand(schedule, target, loss, expected):
    close(relative(schedule, target, [(1.0, loss)], LOGSNR), expected, rtol=1e-6)


def test_effective_weighting_adds_terms_and_ignores_what_is_no_squared_error():
    losses = [
        (0.5, Denoising(space=V)),
        (2.0, Denoising()),
        (9.0, ImageLoss(xhat.penalties.total_variation)),
        (9.0, Denoising(norm=xhat.norms.absolute)),
    ]
    expected = torch.exp(-LOGSNR / 2) / math.pi + 2 / (math.pi * torch.cosh(LOGSNR / 2))
    close(relative(COSINE, V, losses, LOGSNR), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "linear_logsnr"])
@pytest.mark.parametrize("space", [NOISE, V, X0, FLOW], ids=lambda x: x.name)
def test_effective_weighting_describes_the_actual_loss(name, space, rng):
    """½ ∫ w(l) |dl/dt| ‖noise error‖² dt equals the objective of the exact Gaussian denoiser, whose error is known."""
    schedule, data, weight = SCHEDULES[name](), GaussianData(), weightings.min_snr(5)
    objective = Objective(exact(data, schedule), {"d": Term(Denoising(space, weightings.convert_weighting(weight, X0, space)))})
    t = schedule.t_min + (1 - schedule.t_min) * (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    logsnr = schedule.logsnr(t)
    error = data.x0_error(schedule.alpha(t), schedule.sigma(t)) * logsnr.exp()
    expected = (-0.5 * schedule.dlogsnr(t) * objective.effective_weighting(logsnr) * error).mean()
    n = 4000
    loss = objective(data.sample(n, rng))["loss"]
    # stratified times; each value is a mean of 4 squares: relative deviation sqrt(2/4) at most twice over uneven weights
    assert loss.item() == pytest.approx(expected.item(), rel=5 * 2 * math.sqrt(0.5 / n))


@pytest.mark.trap(9)
@pytest.mark.parametrize("name", ["cosine", "linear_beta", "flow"])
def test_the_expected_loss_does_not_depend_on_the_sampler(name):
    """The whole objective with each sampler against the exact integral; five standard errors of each."""
    data = GaussianData()
    losses = {}
    for label, times in {**SAMPLERS, "log_normal": lambda: LogNormalSigma(0.0, 2.0)}.items():
        schedule = SCHEDULES[name]()
        objective = Objective(exact(data, schedule), {"d": Term(Denoising(space=X0))}, times())
        values = []
        for step in range(40):
            own = torch.Generator().manual_seed(step)
            values.append(objective(data.sample(100, own), step=step)["loss"].item())
        values = torch.tensor(values)
        losses[label] = values.mean().item(), values.std().item() / 40**0.5
    schedule = SCHEDULES[name]()
    n = 100 if schedule.steps else 4000
    u = (torch.arange(n, dtype=torch.float64) + (1.0 if schedule.steps else 0.5)) / n
    t = u if schedule.steps else schedule.t_min + (1 - schedule.t_min) * u
    expected = data.x0_error(schedule.alpha(t), schedule.sigma(t)).mean().item()
    for label, (mean, error) in losses.items():
        assert abs(mean - expected) < 5 * error, label


@pytest.mark.parametrize("name", ["cosine_zero", "discrete_rescaled", "flow"])
@pytest.mark.parametrize("target", [X0, V, FLOW], ids=lambda x: x.name)
@pytest.mark.parametrize("space", [X0, V, NOISE, FLOW], ids=lambda x: x.name)
@pytest.mark.trap(7)
def test_zero_terminal_loss_and_gradient_are_finite(name, target, space):
    """Every image at t = 1, where alpha = 0, in float32 and under the weightings that people use."""

    class AtOne(Stratified):
        def sample(self, schedule, n, generator=None, *, step=0):
            return torch.ones(n), torch.ones(n)

    for weight in (weightings.constant, weightings.convert_weighting(weightings.min_snr(5), X0, space)):
        net = Constant(torch.full((1, *SHAPE), 0.3))
        objective = Objective(Denoiser(net, SCHEDULES[name](), target), {"d": Term(Denoising(space, weight))}, AtOne())
        loss = objective(torch.randn(4, *SHAPE))["loss"]
        (grad,) = torch.autograd.grad(loss, net.output)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ["cosine_zero", "discrete_rescaled", "flow"])
@pytest.mark.parametrize("space", [NOISE, V, X0], ids=lambda x: x.name)
@pytest.mark.parametrize(
    "weight",
    [weightings.elbo, weightings.sigmoid(0.0), weightings.debiased, weightings.p2()],
    ids=["elbo", "sigmoid", "debiased", "p2"],
)
@pytest.mark.trap(7)
def test_weights_written_for_noise_stay_finite_where_there_is_no_signal(name, space, weight):
    """A discrete schedule draws t = 1 once in T samples: an infinite weight on a vanishing error must not give NaN."""

    class AtOne(Stratified):
        def sample(self, schedule, n, generator=None, *, step=0):
            return torch.ones(n), torch.ones(n)

    net = Constant(torch.full((1, *SHAPE), 0.3))
    loss = Denoising(space, weight if space is NOISE else weightings.convert_weighting(weight, NOISE, space))
    value = Objective(Denoiser(net, SCHEDULES[name](), V), {"d": Term(loss)}, AtOne())(torch.ones(4, *SHAPE))["loss"]
    (grad,) = torch.autograd.grad(value, net.output)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ["linear_beta", "cosine"])
def test_draw_is_float32_for_float32_images(name):
    draw = simple(name).draw(torch.randn(4, *SHAPE), step=0)
    assert isinstance(draw, Draw)
    assert {draw.t.dtype, draw.noise.dtype, draw.z.dtype, draw.importance.dtype} == {torch.float32}


def test_inner_times_are_inside():
    """The oracle's times are what the tests above assume."""
    for name in SCHEDULES:
        schedule = SCHEDULES[name]()
        t = inner_times(schedule, 10)
        assert ((t >= schedule.t_min) & (t < 1)).all()


def test_the_total_may_be_divided_in_place():
    """As loops that accumulate do; the terms that are reported stay what they are."""
    losses = simple(terms={"d": Term(Fixed(1.0, 3.0))})(torch.zeros(2, *SHAPE))
    losses["loss"] /= 4
    assert (losses["loss"].item(), losses["d"].item()) == (0.5, 2.0)


def test_a_mean_over_a_large_image_does_not_overflow_in_half_precision():
    """Its sum, 196,608, is no number of float16."""
    assert image_mean(torch.ones(2, 3, 256, 256, dtype=torch.float16)).tolist() == [1, 1]
