"""The network that knows its pixels are 8-bit: Bayes' rule written out, gradients, and the exact low-noise end."""

import pytest
import torch

import xhat
from xhat.bound.terms import rate_term
from xhat.networks.level_posterior import LevelPosterior, PosteriorMean
from xhat.tensors import over_images

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def inputs(n=4500, features=5):
    own = torch.Generator().manual_seed(0)
    f, w = (torch.randn(k, features, dtype=torch.float64, generator=own).requires_grad_() for k in (n, 256))
    b = torch.randn(256, dtype=torch.float64, generator=own).requires_grad_()
    y = (torch.rand(n, dtype=torch.float64, generator=own) * 2 - 1).requires_grad_()
    return f, w, b, y, (torch.rand(n, dtype=torch.float64, generator=own) * 1e5).requires_grad_()


def test_mean_and_gradients_equal_automatic_differentiation_of_bayes_rule():
    """More rows than one block holds."""
    f, w, b, y, precision = inputs()
    own = PosteriorMean.apply(f, w, b, y, precision, VALUES)
    logits = f @ w.T + b - 0.5 * precision.unsqueeze(1) * (y.unsqueeze(1) - VALUES) ** 2
    want = (logits.softmax(1) * VALUES).sum(1)
    torch.testing.assert_close(own, want, rtol=0, atol=1e-12)
    out = torch.randn(len(own), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = (f, w, b, y, precision)
    for a, c in zip(torch.autograd.grad(own, given, out), torch.autograd.grad(want, given, out), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    f, w, b, y, precision = inputs(3, 2)
    precision = (precision / 1e3).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: PosteriorMean.apply(*a, VALUES), (f, w, b, y, precision))


def test_float32_resolves_the_gradients_at_low_noise():
    """At logsnr 14 the variance is 1e-6, and a difference of raw moments only rounding."""
    f, w, b, y, _ = (x.detach() for x in inputs(500))
    precision = torch.full_like(y, 1.2e6)

    def gradients(*given):
        given = [x.requires_grad_() for x in given]
        return torch.autograd.grad(PosteriorMean.apply(*given, VALUES.to(given[0].dtype)).sum(), given[3:])

    wide = gradients(*(x.clone() for x in (f, w, b, y, precision)))
    narrow = gradients(*(x.float() for x in (f, w, b, y, precision)))
    for a, c in zip(narrow, wide, strict=True):
        assert float((a - c).norm() / c.norm()) < 1e-1


def test_a_learned_schedule_gets_its_whole_gradient():
    """Through z/alpha and through the precision: against finite differences of the continuous-time bound."""
    schedule = xhat.schedules.Learned(features=4).double()
    denoiser = xhat.Denoiser(LevelPosterior(1, 8, widths=(8,), blocks=(1,), features=4).double(), schedule, xhat.X0)
    own = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (8, 1, 8, 8), generator=own).double() / 127.5 - 1
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=own)
    t = torch.linspace(0.05, 0.6, 8, dtype=torch.float64)

    def rate():
        z = over_images(schedule.alpha(t), x0) * x0 + over_images(schedule.sigma(t), x0) * noise
        return rate_term(denoiser, denoiser(z, t), x0, noise, t).mean()

    for p in (schedule.gamma_0, schedule.log_range, schedule.w1):
        (gradient,) = torch.autograd.grad(rate(), p)
        with torch.no_grad():
            values = []
            for move in (1e-5, -2e-5):
                p += move
                values.append(float(rate()))
            p += 1e-5
        assert float(gradient) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_at_low_noise_it_reads_the_pixels_themselves(channels):
    """float32, logsnr 14: an untrained network still knows every level."""
    schedule = xhat.schedules.LinearLogSNR(-8.0, 14.0)
    net = LevelPosterior(channels, widths=(8, 8), blocks=(1, 1))
    denoiser = xhat.Denoiser(net, schedule, xhat.X0)
    x0 = torch.randint(0, 256, (8, channels, 8, 8)) / 127.5 - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.zeros(8)
    z = schedule.alpha(t).reshape(-1, 1, 1, 1) * x0 + schedule.sigma(t).reshape(-1, 1, 1, 1) * noise
    assert (denoiser(z, t).x0 - x0).abs().max() < 2e-3  # a quarter of a level
    assert denoiser(z, torch.ones(8)).x0.abs().max() < 1  # and at pure noise it has a prior


def test_it_says_what_it_reads_and_predicts():
    net = LevelPosterior(widths=(8, 8), blocks=(1, 1))
    with pytest.raises(ValueError, match="LevelPosterior predicts x0, not v: use target x0"):
        xhat.Denoiser(net, xhat.schedules.LinearLogSNR(), xhat.V)
    schedule = xhat.schedules.LinearLogSNR()
    denoiser = xhat.Denoiser(net, schedule, xhat.X0)
    t = torch.tensor([0.3])
    torch.testing.assert_close(denoiser.time_input(schedule, t), -schedule.logsnr(t) / 8)
    torch.testing.assert_close(denoiser.scale_input(schedule, t), 1 / schedule.alpha(t))


def test_every_parameter_learns_and_bf16_stays_inside_the_body():
    net = LevelPosterior(widths=(8, 8), blocks=(1, 1), classes=3)
    for p in net.body.parameters():
        torch.nn.init.normal_(p, std=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.rand(4, 1, 8, 8) * 2 - 1, torch.linspace(-1.7, 1, 4), torch.tensor([0, 1, 2, 3]))
    assert out.dtype == torch.float32
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
