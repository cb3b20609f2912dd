"""Reversible chains: the gradient of AllSteps, in memory that does not grow with the steps."""

import pytest
import torch
from torch import nn

import xhat
from oracles import SCHEDULES, SHAPE
from xhat import FLOW, Denoiser, FullChain, ImageLoss, Objective, Rollout, Term, V, uniform_times
from xhat.losses.penalties import total_variation
from xhat.sampling.differentiate import AllSteps, Reversible
from xhat.sampling.guidance import Guided
from xhat.sampling.memory import PeakBytes
from xhat.sampling.samplers import DDIM, Leapfrog
from xhat.sampling.spacings import karras_times

NETS = []
"""Of `gradients`, the last one last."""


class Told(nn.Module):
    """A smooth network that is told something, with weights, and counts its calls."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.conv = nn.Conv2d(SHAPE[0], SHAPE[0], 3, padding=1, dtype=dtype)
        self.calls, self.computed_in = 0, []

    def forward(self, z, t, told):
        self.calls += 1
        self.computed_in.append(self.conv(z).dtype)
        return torch.tanh(self.conv(z) + t.to(z.dtype).reshape(-1, 1, 1, 1) * told)


def gradients(schedule, target, how, times, dtype=torch.float64, autocast=False):
    """The end of a chain, and the gradient of its squares in weights, condition and start."""
    torch.manual_seed(0)
    net = Told(dtype)
    NETS.append(net)
    denoiser = Denoiser(net, schedule, target)
    told = torch.full((3, 1, 1, 1), 0.3, dtype=dtype, requires_grad=True)
    start = (float(schedule.prior_std().detach()) * torch.randn(3, *SHAPE, dtype=dtype)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        end = xhat.sample(denoiser, Leapfrog(), start, times, differentiate=how, cond={"told": told})
    end.double().square().sum().backward()
    return end.detach(), [p.grad for p in net.parameters()] + [told.grad, start.grad], net.calls


@pytest.mark.parametrize("steps", [1, 2, 3, 25])
@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "learned"])
def test_it_is_the_gradient_of_all_steps(schedule, steps):
    schedule, target = SCHEDULES[schedule](), FLOW if schedule.startswith("flow") else V
    times = uniform_times(schedule, steps)
    end, found, calls = gradients(schedule, target, Reversible(), times)
    expected_end, expected, _ = gradients(schedule, target, AllSteps(), times)
    assert calls == 2 * steps, "one forward, one backward"
    torch.testing.assert_close(end, expected_end, rtol=1e-9, atol=1e-9)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * float(other.abs().max()))


def test_with_uneven_steps():
    schedule = SCHEDULES["cosine"]()
    times = karras_times(schedule, 30)
    for one, other in zip(*(gradients(schedule, V, how, times)[1] for how in (Reversible(), AllSteps())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8 * float(other.abs().max()))


def test_it_is_what_finite_differences_say():
    schedule = SCHEDULES["cosine"]()
    denoiser = Denoiser(Told(), schedule, V)
    start = torch.randn(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    told, weight = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64), denoiser.net.conv.weight

    def end(z):
        times = uniform_times(schedule, 6)
        return xhat.sample(denoiser, Leapfrog(), z, times, differentiate=Reversible(), cond={"told": told})

    assert torch.autograd.gradcheck(end, start.clone().requires_grad_())
    denoiser.zero_grad()
    end(start).sum().backward()
    sums = []
    for change in (1e-5, -2e-5):
        with torch.no_grad():
            weight[0, 0, 1, 1] += change
            sums.append(float(end(start).sum()))
    assert (sums[0] - sums[1]) / 2e-5 == pytest.approx(float(weight.grad[0, 0, 1, 1]), rel=1e-6)


def test_a_thousand_steps_in_single_precision():
    """What n steps forward rounded is not amplified by n steps back: the images are float64 between them."""
    schedule = SCHEDULES["cosine"]()
    times = uniform_times(schedule, 1000)
    _, found, _ = gradients(schedule, V, Reversible(), times, torch.float32)
    _, expected, _ = gradients(schedule, V, AllSteps(), times, torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_under_autocast_the_backward_pass_computes_as_the_forward_pass_did():
    schedule = SCHEDULES["cosine"]()
    times = uniform_times(schedule, 10)
    _, found, _ = gradients(schedule, V, Reversible(), times, torch.float32, autocast=True)
    assert set(NETS[-1].computed_in) == {torch.bfloat16}
    _, expected, _ = gradients(schedule, V, AllSteps(), times, torch.float32, autocast=True)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).norm() / other.norm()) < 5e-3  # bf16


def test_its_memory_does_not_grow_with_the_steps():
    def peak(how, steps):
        schedule = SCHEDULES["cosine"]()
        with PeakBytes() as counted:
            gradients(schedule, V, how, uniform_times(schedule, steps))
        return counted.peak

    one_image = 3 * SHAPE[0] * SHAPE[1] * SHAPE[2] * 8
    of_times = 4 * 8 * 180  # numbers: times, r, u, and alpha or sigma while they are computed
    assert peak(Reversible(), 200) - peak(Reversible(), 20) < of_times + 2 * one_image
    assert peak(AllSteps(), 200) - peak(AllSteps(), 20) > 150 * one_image


def test_in_an_objective_with_guidance():
    """Every term's way of asking for gradients, and classifier-free guidance inside of the chain."""

    def found(how):
        torch.manual_seed(0)
        null = {"told": torch.zeros(1, 1, 1, dtype=torch.float64)}
        denoiser = Denoiser(Told(), SCHEDULES["cosine"](), V, null=null)
        image = FullChain(Leapfrog(), 8, how, guidance=2.0)
        objective = Objective(denoiser, {"smooth": Term(ImageLoss(total_variation, image))})
        x0 = torch.rand(3, *SHAPE, dtype=torch.float64)
        objective(x0, cond={"told": torch.ones(3, 1, 1, 1, dtype=torch.float64)}, step=1)["loss"].backward()
        return denoiser.net.conv.weight.grad

    torch.testing.assert_close(found(Reversible()), found(AllSteps()), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("of_weights", [False, True])
def test_conditions_that_hang_together_count_once(of_weights):
    """Their common graph is gone through by the caller's backward pass, not by each step as well."""

    class Two(Told):
        def forward(self, z, t, told, more):
            return super().forward(z, t, told) * more

    def found(how):
        torch.manual_seed(0)
        net, embedding = Two(), torch.full((2, 3), 0.4, dtype=torch.float64, requires_grad=True)
        source = net.conv.weight.sum() * torch.ones(2, 3, dtype=torch.float64) if of_weights else embedding
        cond = {"told": source[:, :1].reshape(2, 1, 1, 1), "more": source.mean(1).exp().reshape(2, 1, 1, 1)}
        denoiser = Denoiser(net, SCHEDULES["cosine"](), V)
        start = torch.randn(2, *SHAPE, dtype=torch.float64)
        times = uniform_times(denoiser.schedule, 4)
        xhat.sample(denoiser, Leapfrog(), start, times, differentiate=how, cond=cond).square().sum().backward()
        return net.conv.weight.grad if of_weights else embedding.grad

    torch.testing.assert_close(found(Reversible()), found(AllSteps()), rtol=1e-8, atol=1e-12)


class TestRefusals:
    """What it cannot take back."""

    def test_another_sampler(self):
        with pytest.raises(ValueError, match="use Leapfrog"):
            FullChain(DDIM(), 10, Reversible())

    def test_a_sampler_with_steps_of_its_own(self):
        class Clipped(Leapfrog):
            def step(self, *arguments):
                z, state = super().step(*arguments)
                return z.clamp(-0.1, 0.1), state

        with pytest.raises(ValueError, match="use Leapfrog"):
            FullChain(Clipped(), 10, Reversible())

    def test_times_of_each_image(self):
        with pytest.raises(ValueError, match="use it in FullChain"):
            Rollout(Leapfrog(), 3, Reversible())

    def test_times_without_a_change_of_noise(self):
        schedule = xhat.schedules.LinearLogSNR(-80, 20)
        with pytest.raises(ValueError, match="changes no noise"):
            gradients(schedule, V, Reversible(), uniform_times(schedule, 50))

    def test_dropout(self):
        schedule = SCHEDULES["cosine"]()
        denoiser = Denoiser(nn.Sequential(nn.Dropout(0.5)), schedule, V)
        with pytest.raises(ValueError, match="dropout"):
            xhat.sample(denoiser, Leapfrog(), torch.randn(2, *SHAPE), uniform_times(schedule, 3), differentiate=Reversible())

    def test_something_else_that_learns(self):
        """Like a null of guidance: what the network reads, and nobody passes."""
        schedule, row = SCHEDULES["cosine"](), torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
        denoiser = Guided(Denoiser(Told(), schedule, V), 2.0, null={"told": row})
        start, cond = torch.randn(2, *SHAPE, dtype=torch.float64), {"told": torch.ones(2, 1, 1, 1, dtype=torch.float64)}
        times = uniform_times(schedule, 3)
        end = xhat.sample(denoiser, Leapfrog(), start, times, differentiate=Reversible(), cond=cond)
        with pytest.raises(ValueError, match="a null that learns"):
            end.sum().backward()

    def test_a_schedule_that_learns(self):
        schedule = SCHEDULES["learned"]()
        with pytest.raises(ValueError, match="freeze them"):
            gradients(schedule, V, Reversible(), uniform_times(schedule, 5).detach())

    def test_a_network_that_answers_differently(self):
        schedule = SCHEDULES["cosine"]()
        denoiser = Denoiser(nn.Sequential(), schedule, V)

        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones(()))

            def forward(self, z, t):
                return self.w * nn.functional.dropout(z, 0.5)

        denoiser.net = Noisy()
        end = xhat.sample(denoiser, Leapfrog(), torch.randn(2, *SHAPE), uniform_times(schedule, 20), differentiate=Reversible())
        with pytest.raises(ValueError, match="missed its start"):
            end.sum().backward()
