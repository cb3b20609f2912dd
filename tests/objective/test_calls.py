"""Somebody's own loop: an objective that is not told the step, micro-batches, what it returns, how it is saved and copied."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import xhat
from oracles import SCHEDULES, MixtureData, ScaledX0
from xhat import NOISE, X0, Denoising, Objective, Shard, Term, V, every
from xhat.objective.multipliers import DualAscent


def simple(schedule="cosine", target=V, terms=None, **kwargs):
    on = SCHEDULES[schedule]()
    return Objective(xhat.Denoiser(ScaledX0(on, target), on, target), terms or {"d": Term(Denoising())}, **kwargs)


@pytest.fixture
def images(rng):
    return MixtureData().sample(8, rng)


def losses(objective, *calls):
    """The loss of each call, (arguments, keywords)."""
    return [objective(*args, **kwargs)["loss"].item() for args, kwargs in calls]


@pytest.mark.trap(32)
def test_a_training_call_without_a_step_is_the_next_step(images):
    counted, told = simple(), simple()
    assert losses(counted, *[((images,), {})] * 4) == losses(told, *[((images,), {"step": n}) for n in range(4)])


@pytest.mark.trap(32)
def test_in_evaluation_mode_a_call_without_a_step_is_the_same_draw_and_counts_nothing(images):
    objective = simple()
    first = losses(objective, ((images,), {}))
    objective.eval()
    assert len(set(losses(objective, *[((images,), {})] * 3))) == 1
    objective.train()
    assert losses(objective, ((images,), {})) == losses(simple(), ((images,), {"step": 1})) != first


@pytest.mark.trap(32)
def test_the_count_goes_on_after_a_step_that_was_named_and_after_a_restart(images):
    objective = simple()
    losses(objective, ((images,), {"step": 40}), ((images,), {}))
    again = simple()
    again.load_state_dict(objective.state_dict())
    assert losses(again, ((images,), {})) == losses(simple(), ((images,), {"step": 42}))


@pytest.mark.trap(33)
def test_micro_batches_of_one_step_see_different_noise_and_a_restart_between_them_changes_nothing(images):
    """Lightning and Accelerate call twice with one step and say no more."""
    objective = simple()
    draws = []
    objective.denoiser.register_forward_pre_hook(lambda net, inputs: draws.append(inputs[:2]))
    for _ in range(3):
        objective(images, step=7)
    for (z, t), (other_z, other_t) in ((draws[0], draws[1]), (draws[1], draws[2]), (draws[0], draws[2])):
        assert (z != other_z).all()
        assert (t != other_t).all()
    objective, whole = simple(), simple()
    first = losses(objective, ((images[:4],), {"step": 7}))
    restarted = simple()
    restarted.load_state_dict(objective.state_dict())
    second = losses(restarted, ((images[4:],), {"step": 7}))
    assert first + second == losses(whole, *[((part,), {"step": 7}) for part in (images[:4], images[4:])])


@pytest.mark.trap(33)
def test_micro_batches_of_unlike_size_share_no_noise(images):
    objective, drawn = simple(), []
    objective.denoiser.register_forward_pre_hook(lambda net, inputs: drawn.append(inputs[0]))
    sizes = (5, 2, 1)
    for part in torch.zeros_like(images).split(sizes):  # z is sigma · noise
        objective(part, step=1)
    flat = torch.cat(drawn).flatten(1)
    ratios = flat / flat[:, :1]  # noise up to sigma
    assert len(torch.unique(ratios[:, 1:], dim=0)) == 8


@pytest.mark.parametrize("told", [True, False], ids=["step", "no step"])
@pytest.mark.parametrize(
    "times", [xhat.times.Stratified, lambda: xhat.times.LogitNormal(0.0, 1.0)], ids=["stratified", "logit_normal"]
)
def test_two_micro_batches_with_a_shard_are_one_batch(images, times, told):
    """Loss and gradient of accumulation equal those of the whole batch, where the caller says which part is which."""
    whole, parts = simple(times=times()), simple(times=times())
    for step in range(3):
        keywords = {"step": step} if told else {}
        total = whole(images, **keywords)["loss"]
        halves = [parts(x, shard=Shard(4 * i, 8), **keywords)["loss"] for i, x in enumerate(images.split(4))]
        torch.testing.assert_close(sum(halves) / 2, total, rtol=1e-6, atol=1e-12)
        (a,), (b,) = (torch.autograd.grad(v, o.denoiser.net.scale) for v, o in ((total, whole), (sum(halves) / 2, parts)))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("step", [torch.tensor(3), 3.0, np.int64(3), np.float32(3), torch.tensor(3.0)], ids=repr)
def test_a_whole_number_of_any_type_is_that_step(images, step):
    gate = xhat.gates.randomly(0.5)
    terms = {"d": Term(Denoising()), "e": Term(Denoising(X0), when=gate)}
    assert losses(simple(terms=terms), ((images,), {"step": step})) == losses(simple(terms=terms), ((images,), {"step": 3}))


@pytest.mark.parametrize("step", [2.5, -1, float("nan"), float("inf"), 2**63])
def test_what_is_no_step_is_refused_and_changes_nothing(images, step):
    objective = simple()
    with pytest.raises(ValueError, match="whole number"):
        objective(images, step=step)
    assert losses(objective, ((images,), {})) == losses(simple(), ((images,), {"step": 0}))


@pytest.mark.parametrize("cut", [3, 5])
@pytest.mark.parametrize("times", [xhat.times.Stratified, lambda: xhat.times.Adaptive(bins=2)], ids=["stratified", "adaptive"])
def test_parts_of_unequal_size_are_one_batch_too(images, times, cut):
    """Without a step: the parts of one batch are one step, whatever their sizes, and a learned density takes in all of it."""
    whole, parts = simple(times=times()), simple(times=times())
    for _ in range(3):
        total = whole(images)["loss"].item()
        first, second = images.split((cut, 8 - cut))
        a, b = (parts(x, shard=Shard(at, 8))["loss"].item() for x, at in ((first, 0), (second, cut)))
        assert (cut * a + (8 - cut) * b) / 8 == pytest.approx(total, rel=1e-6)
    if isinstance(parts.times, xhat.times.Adaptive):
        assert parts.times.seen.sum() > 0
        torch.testing.assert_close(parts.times.average, whole.times.average, rtol=1e-5, atol=1e-9)


@pytest.mark.trap(37)
def test_only_the_loss_has_a_graph(images):
    terms = {"d": Term(Denoising()), "i": Term(xhat.ImageLoss(xhat.penalties.total_variation), DualAscent(0.1))}
    values = simple(terms=terms)(images)
    assert {name for name, value in values.items() if value.requires_grad} == {"loss"}


def test_a_loop_that_forgot_the_step_trains_as_one_that_did_not(rng):
    """The held-out error of a network trained with counted steps is that of named ones, far below that of one draw repeated."""

    def trained(call):
        torch.manual_seed(0)
        net = xhat.UNet(widths=(8,), blocks=(1,), embedding=16, size=8, fold=1)
        objective = Objective(xhat.Denoiser(net, xhat.Cosine(), V), {"d": Term(Denoising(V))})
        optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
        for step in range(60):
            call(objective, x0, step)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return objective.eval()(x0, step=10_000)["loss"].item()

    x0 = torch.randn(8, 1, 8, 8, generator=rng).clamp(-1, 1)
    counted = trained(lambda objective, x0, step: objective(x0))
    named = trained(lambda objective, x0, step: objective(x0, step=step))
    repeated = trained(lambda objective, x0, step: objective(x0, generator=torch.Generator().manual_seed(0)))
    assert counted == named < 0.9 * repeated


ALL = [
    X0,
    NOISE,
    V,
    xhat.targets.SCALED_NOISE,
    xhat.targets.STEP_NOISE,
    xhat.targets.POSTERIOR_MEAN,
    xhat.targets.SCORE,
    xhat.FLOW,
    xhat.targets.edm(0.5),
]


class OwnTarget(nn.Module):
    """A network that says what it predicts, as adapters do."""

    def __init__(self, target):
        super().__init__()
        self.target, self.conv = target, nn.Conv2d(1, 1, 3, padding=1).double()

    def forward(self, z, t):
        return self.conv(z)


def through_a_file(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x)), "torch.save": through_a_file}


@pytest.mark.trap(38)
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("target", ALL, ids=str)
def test_copies_of_network_denoiser_and_objective_are_the_same(images, target, copied):
    """EMA by deepcopy, spawn and torch.save: every choice is still itself, and the copy computes the same."""
    of, schedule = COPIES[copied], xhat.Discrete.linear_beta(50)
    denoiser = xhat.Denoiser(OwnTarget(target), schedule, target)
    xhat.Denoiser(of(denoiser.net), schedule, target)  # accepted with the target that it has
    terms = {
        "d": Term(
            Denoising(target, weighting=xhat.weightings.convert_weighting(xhat.min_snr(5), X0, target)),
            when=xhat.gates.reweighted(every(1)),
        ),
        "i": Term(
            xhat.ImageLoss(xhat.penalties.total_variation), DualAscent(0.1), xhat.gates.both(every(1), xhat.gates.after(0))
        ),
    }
    objective = Objective(denoiser, terms, xhat.times.Adaptive(bins=4))
    objective(images)
    other = of(objective)
    assert other.denoiser.target == target
    assert losses(other, ((images,), {})) == losses(objective, ((images,), {}))
    draw = other.draw(images, step=0)
    assert draw.prediction.in_space(target) is draw.prediction.raw
