"""Reverse variances against DDPM's and Improved DDPM's formulas."""

import pytest
import torch

import xhat
from oracles import SCHEDULES, GaussianData, exact, inner_times
from xhat import Denoiser, Discrete, V
from xhat.diffusion.variances import FIXED_LARGE, FORWARD, LEARNED, POSTERIOR


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture
def chain():
    """DDPM's quantities of a table, from its betas alone: schedule, t, s, beta, beta-tilde."""
    betas = torch.linspace(1e-3, 0.2, 50, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    t = torch.arange(1, 51, dtype=torch.float64) / 50
    return Discrete.from_betas(betas), t, t - 1 / 50, betas, (1 - before) / (1 - abar) * betas


def log_variance(variance, schedule, t, s, logits=None, channels=1):
    z = torch.zeros(t.numel(), channels, 2, 2, dtype=torch.float64)
    return variance.log_variance(schedule, z, t, s, logits).expand_as(z)[:, 0, 0, 0]


def test_forward_is_beta(chain):
    schedule, t, s, beta, _ = chain
    close(log_variance(FORWARD, schedule, t, s).exp(), beta)


def test_posterior_is_beta_tilde_and_the_first_takes_the_second(chain):
    """beta-tilde_1 = 0 has no logarithm: both DDPM codes replace it by beta-tilde_2 (posterior_log_variance_clipped)."""
    schedule, t, s, _, tilde = chain
    expected = torch.cat([tilde[1:2], tilde[1:]])
    close(log_variance(POSTERIOR, schedule, t, s).exp(), expected)


@pytest.mark.trap(47)
def test_fixed_large_takes_the_second_beta_tilde_into_the_data(chain):
    """Of DDPM's and Improved DDPM's code; diffusers' is beta there too."""
    schedule, t, s, beta, tilde = chain
    close(log_variance(FIXED_LARGE, schedule, t, s).exp(), torch.cat([tilde[1:2], beta[1:]]))


@pytest.mark.trap(47)
def test_the_last_steps_variance_changes_the_reconstruction_and_no_sample():
    schedule = Discrete.linear_beta(1000)
    x0 = (torch.arange(64.0, dtype=torch.float64).reshape(-1, 1, 1, 1) * 4).round() * 2 / 255 - 1
    a, b = (exact(GaussianData(), schedule, variance=v) for v in (FORWARD, FIXED_LARGE))
    times, start = xhat.uniform_times(schedule, 20), torch.randn(8, 1, 2, 2, dtype=torch.float64)
    drawn = (xhat.sample(d, xhat.DDPM(), start, times, generator=torch.Generator().manual_seed(0)) for d in (a, b))
    assert torch.equal(*drawn)
    t = schedule.time(torch.ones(64, dtype=torch.int64)).double()
    z = schedule.alpha(t)[:, None, None, None] * x0.expand(-1, 1, 2, 2)
    l0 = [-xhat.bound.DISCRETIZED.log_prob(d, d(z, t), x0.expand(-1, 1, 2, 2)).mean() for d in (a, b)]
    assert l0[1] < 0.97 * l0[0]


def test_learned_interpolates_the_logarithms(chain):
    """v = -1 is beta-tilde, v = 1 is beta, v = 0 the geometric mean; beyond the ends it extrapolates, without clamp."""
    schedule, t, s, _, _ = chain
    low, high = log_variance(POSTERIOR, schedule, t, s), log_variance(FORWARD, schedule, t, s)
    for v, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2), (3.0, low + 2 * (high - low))):
        logits = torch.full((50, 1, 2, 2), v, dtype=torch.float64)
        close(log_variance(LEARNED, schedule, t, s, logits), expected)


@pytest.mark.parametrize("name", ["cosine", "flow", "ve", "learned"])
def test_continuous_variances_over_any_step(name):
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 20)
    s = (t / 3).clamp(min=schedule.t_min)
    beta = schedule.sigma(t) ** 2 - (schedule.alpha(t) / schedule.alpha(s)) ** 2 * schedule.sigma(s) ** 2
    pick = t > 2.1 * max(schedule.t_min, 1e-3)
    close(log_variance(FORWARD, schedule, t, s)[pick], beta.log()[pick], rtol=1e-7, atol=1e-9)
    tilde = beta * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
    close(log_variance(POSTERIOR, schedule, t, s)[pick], tilde.log()[pick], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("std", [0.05, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("variance", [POSTERIOR, FORWARD], ids=["posterior", "forward"])
def test_the_exact_reverse_variance_lies_between_the_two(std, variance):
    """For N(m, std²) data p(z_s | z_t) has variance tilde + from_x0² var(x0 | z_t): FORWARD at std 1, POSTERIOR at 0."""
    schedule = Discrete.linear_beta(50, 1e-3, 0.2)
    t = torch.arange(3, 51, dtype=torch.float64) / 50
    s = t - 1 / 50
    step = xhat.diffusion.gaussians.transition(schedule, t, s)
    true = step.posterior_variance + step.from_x0**2 * GaussianData(0.0, std).x0_error(schedule.alpha(t), schedule.sigma(t))
    own = log_variance(variance, schedule, t, s).exp()
    if variance is POSTERIOR:
        assert (own < true).all()
    elif std == 1.0:
        close(own, true)
    else:
        assert ((own > true) == (std < 1)).all()


def test_learned_variance_needs_its_channels():
    with pytest.raises(ValueError, match="2C"):
        LEARNED.log_variance(SCHEDULES["cosine"](), torch.zeros(1, 1, 2, 2), torch.ones(1), torch.full((1,), 0.5), None)
    denoiser = exact(GaussianData(), SCHEDULES["cosine"](), variance=LEARNED)
    with pytest.raises(ValueError, match="2 per image channel for Learned"):
        denoiser(torch.zeros(3, 1, 2, 2), torch.full((3,), 0.5))


class _TwoHeads(torch.nn.Module):
    def forward(self, z, t):
        return torch.cat([torch.zeros_like(z), torch.linspace(-1, 1, z.shape[1]).reshape(-1, 1, 1).to(z) + 0 * z], 1)


def test_the_second_half_of_the_channels_is_the_variance(chain):
    schedule, t, s, _, _ = chain
    denoiser = Denoiser(_TwoHeads(), schedule, V, variance=LEARNED)
    z = torch.randn(50, 3, 2, 2, dtype=torch.float64)
    prediction = denoiser(z, t)
    close(prediction.raw, torch.zeros_like(z))
    low, high = log_variance(POSTERIOR, schedule, t, s), log_variance(FORWARD, schedule, t, s)
    for channel, expected in enumerate((low, (low + high) / 2, high)):
        close(prediction.log_variance[:, channel, 0, 0], expected)
        close(denoiser.reverse(z, t, s).log_variance[:, channel, 1, 1], expected)


def test_variances_are_finite_in_float32_at_every_step():
    """The step noise of DDPM's table spans 1e-4 to 1: finite logs and gradients at all 1000 float32 times."""
    schedule = Discrete.linear_beta(1000)
    t = schedule.time(torch.arange(1, 1001))
    s = schedule.time(torch.arange(0, 1000))
    z, logits = torch.zeros(1000, 1, 1, 1), torch.zeros(1000, 1, 1, 1, requires_grad=True)
    for variance in (POSTERIOR, FORWARD, LEARNED):
        value = variance.log_variance(schedule, z, t, s, logits)
        assert torch.isfinite(value).all()
        wide = variance.log_variance(schedule, z.double(), t.double(), s.double(), logits.double())
        close(value.double(), wide, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(grad).all()
