"""The network that knows its pixels are 8-bit: Bayes' rule written out, gradients, and the exact low-noise end."""

import pytest
import torch

import xhat
from xhat.networks.level_posterior import LevelPosterior, PosteriorMean

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def inputs(n=4500, features=5):
    own = torch.Generator().manual_seed(0)
    f, w = (torch.randn(k, features, dtype=torch.float64, generator=own).requires_grad_() for k in (n, 256))
    b = torch.randn(256, dtype=torch.float64, generator=own).requires_grad_()
    y = (torch.rand(n, dtype=torch.float64, generator=own) * 2 - 1).requires_grad_()
    return f, w, b, y, torch.rand(n, dtype=torch.float64, generator=own) * 1e5


def test_mean_and_gradients_equal_automatic_differentiation_of_bayes_rule():
    """More rows than one block holds."""
    f, w, b, y, precision = inputs()
    own = PosteriorMean.apply(f, w, b, y, precision, VALUES)
    logits = f @ w.T + b - 0.5 * precision.unsqueeze(1) * (y.unsqueeze(1) - VALUES) ** 2
    want = (logits.softmax(1) * VALUES).sum(1)
    torch.testing.assert_close(own, want, rtol=0, atol=1e-12)
    out = torch.randn(len(own), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, c in zip(torch.autograd.grad(own, (f, w, b, y), out), torch.autograd.grad(want, (f, w, b, y), out), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_at_low_noise_it_reads_the_pixels_themselves(channels):
    """float32, logsnr 14: an untrained network still knows every level."""
    schedule = xhat.LinearLogSNR(-8.0, 14.0)
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
        xhat.Denoiser(net, xhat.LinearLogSNR(), xhat.V)
    schedule = xhat.LinearLogSNR()
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
