"""The ODE likelihood against densities in closed form."""

import math

import pytest
import torch

import xhat
from oracles import GaussianData, Levels, MixtureData, exact
from xhat.bound.ode import AsDensity, Exact, Hutchinson, TruncatedNormal, Uniform, ode_likelihood

SCHEDULES = {
    "cosine": xhat.Cosine(-15, 18),
    "linear_logsnr": xhat.schedules.LinearLogSNR(-14, 18),
    "flow": xhat.Flow(t_min=1e-4),
    "zero_terminal": xhat.Cosine(-15, 18).rescale_zero_terminal(),
    "discrete": xhat.Discrete.linear_beta(1000, 1e-7, 0.02),
    "discrete_zero_terminal": xhat.Discrete.linear_beta(1000, 1e-7, 0.02).rescale_zero_terminal(),
    "ve": xhat.schedules.VE(1e-4, 5000.0),
}


def density(data, x):
    """log p(x), nats, (B,), written from the definition."""
    if isinstance(data, GaussianData):
        normal = torch.distributions.Normal(data.mean, data.std)
        return normal.log_prob(x).flatten(1).sum(1)
    parts = [torch.distributions.Normal(m, data.std).log_prob(x).flatten(1).sum(1) for m in data.means]
    return (torch.stack(parts, 1) + torch.tensor(data.weights, dtype=x.dtype).log()).logsumexp(1)


@pytest.mark.trap(13)
@pytest.mark.parametrize("data", [GaussianData(), MixtureData()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_log_density_of_known_data(name, data, rng):
    """Per image, not only in the mean; a reversed ODE is off by many bits."""
    schedule = SCHEDULES[name]
    x = data.sample(8, rng)
    got = ode_likelihood(exact(data, schedule), x, dequantization=AsDensity(), trace=Exact(), rtol=1e-6, atol=1e-7)
    want = -density(data, x) / (4 * math.log(2))
    # what is left: the density of data with sigma(t_low) noise, and a prior that is not quite pure noise
    torch.testing.assert_close(got.bits_per_dim, want, rtol=0, atol=1e-2 if schedule.steps else 2e-3)


def test_hutchinsons_trace_is_unbiased(rng):
    data = MixtureData()
    x = data.sample(1, rng).expand(400, -1, -1, -1)
    denoiser = exact(data, SCHEDULES["cosine"])
    want = ode_likelihood(denoiser, x[:1], dequantization=AsDensity(), trace=Exact()).bits_per_dim
    got = ode_likelihood(denoiser, x, dequantization=AsDensity(), trace=Hutchinson()).bits_per_dim
    assert got.std() > 1e-3
    assert abs(got.mean() - want) < 3 * got.std() / 20
    more = ode_likelihood(denoiser, x, dequantization=AsDensity(), trace=Hutchinson(4)).bits_per_dim
    assert more.std() < 0.7 * got.std()


@pytest.mark.trap(13)
def test_eight_bit_data_pay_for_their_bins(rng):
    """Gaussian data rounded to 8 bits: P(bin) is known; a forgotten dequantization entropy would be off by 7 bits."""
    data = GaussianData(std=0.2)
    x = ((data.sample(64, rng).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    normal = torch.distributions.Normal(data.mean, data.std)
    mass = normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)
    want = -mass.log2().flatten(1).mean(1)
    denoiser = exact(data, SCHEDULES["linear_logsnr"])
    difference = ode_likelihood(denoiser, x, dequantization=Uniform(), trace=Exact()).bits_per_dim - want
    assert abs(float(difference.mean())) < 3 * float(difference.std()) / 8 + 1e-3
    assert float(difference.std()) < 0.05


@pytest.mark.trap(13)
def test_truncated_noise_is_tight_for_pixels_that_are_levels(rng):
    """Pixels with three values, the exact denoiser: -log2 of each pixel's probability; uniform noise costs more."""
    levels, chance = [0, 100, 255], torch.tensor([0.6, 0.15, 0.25], dtype=torch.float64)
    schedule = xhat.schedules.LinearLogSNR(-12, 14)
    denoiser = xhat.Denoiser(Levels(schedule, levels, chance), schedule, xhat.NOISE)
    chosen = torch.multinomial(chance, 32 * 4, replacement=True, generator=rng).reshape(32, 1, 2, 2)
    x = torch.tensor(levels)[chosen].double() * 2 / 255 - 1
    want = -chance.log2()[chosen].flatten(1).mean(1)
    got = ode_likelihood(denoiser, x, dequantization=TruncatedNormal(), trace=Exact(), rtol=1e-6, atol=1e-6).bits_per_dim
    assert float((got - want).abs().mean()) < 5e-3
    loose = ode_likelihood(denoiser, x, dequantization=Uniform(), trace=Exact(), rtol=1e-6, atol=1e-6).bits_per_dim
    assert float((loose - want).mean()) > 0.5


@pytest.mark.trap(13)
@pytest.mark.parametrize("kind", ["levels", "gaussian"])
def test_both_dequantizations_are_measured_and_the_smaller_is_named(kind, rng):
    """Truncated noise is tighter where the network resolves levels; uniform noise where it does not, as on the demo."""
    if kind == "levels":
        levels, chance = [0, 100, 255], torch.tensor([0.6, 0.15, 0.25], dtype=torch.float64)
        denoiser = xhat.Denoiser(Levels(schedule := xhat.schedules.LinearLogSNR(-12, 14), levels, chance), schedule, xhat.NOISE)
        x = torch.tensor(levels)[torch.multinomial(chance, 32, replacement=True, generator=rng)].reshape(8, 1, 2, 2)
        x = x.double() * 2 / 255 - 1
    else:  # exact only down to noise of four levels, below which it believes in N(0, 1)
        denoiser = xhat.Denoiser(_Blunt(), xhat.schedules.LinearLogSNR(-12, 14), xhat.V)
        x = ((torch.randn(8, 1, 2, 2, generator=rng, dtype=torch.float64).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    each = {d.name: ode_likelihood(denoiser, x, dequantization=d, trace=Exact()) for d in (Uniform(), TruncatedNormal())}
    best = ode_likelihood(denoiser, x, trace=Exact())
    means = {name: float(found.bits_per_dim.mean()) for name, found in each.items()}
    assert (
        best.dequantization
        == min(means, key=means.get)
        == ("uniform" if kind == "gaussian" else "variational, truncated normal")
    )
    assert float(best.bits_per_dim.mean()) == min(means.values())
    assert max(means.values()) - min(means.values()) > 0.2


class _Blunt(torch.nn.Module):
    """v_hat of N(0, 1) data."""

    def forward(self, z, t):
        return 0 * z


def test_latents_need_no_bins_and_are_told_so(rng):
    denoiser = exact(GaussianData(), xhat.Cosine())
    with pytest.raises(ValueError, match="8-bit"):
        ode_likelihood(denoiser, torch.randn(2, 1, 2, 2).double())


def test_the_ode_and_the_bound_agree_on_exact_denoisers(rng):
    """The denoiser of Gaussian data, on rounded data: both dequantize by the lowest noise and agree on the cost.

    Uniform noise within the bins costs half a bit less, and is then the entropy of the rounded data.
    """
    data = GaussianData(std=0.2)
    x = ((data.sample(256, rng).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    schedule = xhat.schedules.LinearLogSNR(-12, 13.3)
    denoiser = exact(data, schedule)
    bound = xhat.estimate_bound(denoiser, x, x[:32], steps=math.inf, evaluations=16)
    ode = ode_likelihood(denoiser, x, dequantization=TruncatedNormal(), trace=Exact()).bits_per_dim
    se = math.hypot(bound.bits_per_dim_se, float(ode.std()) / 16)
    assert abs(bound.bits_per_dim - float(ode.mean())) < 2 * se
    best = ode_likelihood(denoiser, x, trace=Exact()).bits_per_dim
    entropy = math.log2(data.std * math.sqrt(2 * math.pi * math.e) * 255 / 2)
    assert abs(float(best.mean()) - entropy) < 3 * float(best.std()) / 16


class Says(torch.nn.Module):
    """A network that says one number everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, z, t):
        return 0 * z + self.value


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "is not finite at t = "), (math.inf, "not finite"), (1e30, "far too large")]
)
def test_a_network_that_cannot_be_followed_is_named(value, message):
    x = torch.zeros(2, 1, 2, 2) + 1
    with pytest.raises(ValueError, match=f"diffusion: .*{message}"):
        ode_likelihood(xhat.Denoiser(Says(value), xhat.Cosine(), xhat.V), x)
