"""The bound and the ODE as densities: on Gaussian fields they are the entropy, in the units of the data."""

import math

import numpy as np
import pytest
import torch

import xhat
from oracles import CONTINUOUS, SCHEDULES
from xhat.bound import DENSITY, GAUSSIAN, estimate_bound, ode_likelihood, variational_bound
from xhat.bound.decoders import density_decoder
from xhat.bound.ode import AsDensity, Exact
from xhat.data.units import Units
from xhat.tensors import over_images

SIDE = 8


class CorrelatedNet(torch.nn.Module):
    """The exact E[v | z] of a stationary Gaussian field, computed mode by mode of its Fourier transform."""

    def __init__(self, power, schedule):
        super().__init__()
        self.power, self.schedule = power, schedule

    def forward(self, z, t):
        alpha, sigma = over_images(self.schedule.alpha(t), z), over_images(self.schedule.sigma(t), z)
        gain = alpha * self.power / (alpha**2 * self.power + sigma**2)
        x0 = torch.fft.ifft2(gain * torch.fft.fft2(z)).real
        return xhat.V.of(self.schedule, t, x0, (z - alpha * x0) / sigma)


def field(n, seed=0):
    """A periodic Gaussian field (n, 1, 8, 8) with power 1/(1 + k²)^2, its eigenvalues, and its entropy in bits per value."""
    k = torch.fft.fftfreq(SIDE, 1 / SIDE, dtype=torch.float64)
    power = 4 / (1 + (k[:, None] ** 2 + k[None] ** 2)) ** 2
    white = torch.randn(n, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = torch.fft.ifft2(power.sqrt() * torch.fft.fft2(white)).real
    entropy = 0.5 * math.log2(2 * math.pi * math.e) + 0.5 * float(power.log2().mean())
    return x, power, entropy


def exact_bits(x, power):
    """-log2 of the density of each field, per value."""
    modes = torch.fft.fft2(x).abs().square() / SIDE**2
    nats = 0.5 * (modes / power).sum((1, 2, 3)) + 0.5 * power.log().sum() + SIDE**2 / 2 * math.log(2 * math.pi)
    return nats / math.log(2) / SIDE**2


def denoiser(power, schedule):
    return xhat.Denoiser(CorrelatedNet(power, schedule), schedule, xhat.V)


def test_the_field_has_the_entropy_that_is_said():
    x, _, entropy = field(4000)
    covariance = torch.cov(x.flatten(1).T)
    by_hand = 0.5 * math.log2(2 * math.pi * math.e) + 0.5 * float(torch.linalg.slogdet(covariance)[1]) / math.log(2) / SIDE**2
    assert abs(by_hand - entropy) < 0.02


@pytest.mark.parametrize("schedule", [xhat.Cosine(-12.0, 14.0), xhat.schedules.LinearLogSNR(-12.0, 14.0), xhat.Flow()], ids=str)
def test_the_bound_of_an_exact_denoiser_is_the_entropy(schedule):
    x, power, entropy = field(300)
    found = estimate_bound(denoiser(power, schedule), x, field(60, 1)[0], steps=math.inf, decoder=GAUSSIAN, evaluations=16)
    assert found.bits_per_dim_se < 0.02
    assert found.bits_per_dim == pytest.approx(entropy, abs=4 * found.bits_per_dim_se)


def test_with_finitely_many_steps_it_lies_above_and_more_come_nearer():
    x, power, _ = field(100)
    made = denoiser(power, xhat.schedules.LinearLogSNR(-12.0, 14.0))
    of = {n: float(variational_bound(made, x, steps=n, decoder=GAUSSIAN).bits_per_dim.mean()) for n in (100, 200, 400)}
    assert of[100] > of[200] > of[400]
    assert 1.7 < (of[100] - of[200]) / (of[200] - of[400]) < 2.3  # the gap falls like 1/T
    assert 2 * of[400] - of[200] == pytest.approx(float(exact_bits(x, power).mean()), abs=0.05)


@pytest.mark.parametrize("name", [n for n in CONTINUOUS if n != "learned"])
def test_the_flat_decoder_costs_what_its_docstring_says(name):
    schedule = SCHEDULES[name]()
    t = torch.tensor([GAUSSIAN.lowest(schedule)], dtype=torch.float64)
    s = float(torch.exp(-schedule.logsnr(t))) / 0.25  # of data with variance 1/4
    x = 0.5 * torch.randn(20000, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = -GAUSSIAN.log_prob(schedule, x, noise)
    z = over_images(schedule.alpha(t.expand(len(x))), x) * x + over_images(schedule.sigma(t.expand(len(x))), x) * noise
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    variance = 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)
    mean = 0.25 * alpha * z / (alpha**2 * 0.25 + sigma**2)
    best = (0.5 * (x - mean) ** 2 / variance + 0.5 * math.log(2 * math.pi * variance)).flatten(1).sum(1)
    expected = 4 * 0.5 * (math.log1p(s) - s / (1 + s))
    assert float((given - best).mean()) == pytest.approx(expected, abs=5 * float((given - best).std()) / 20000**0.5 + 1e-9)


def test_on_a_discrete_schedule_the_last_step_is_the_density():
    x, power, entropy = field(60)
    schedule = xhat.Discrete.cosine_beta(1000)
    assert density_decoder(schedule) == DENSITY
    found = variational_bound(denoiser(power, schedule), x[:4], decoder=DENSITY).bits_per_dim
    assert 0 < float(found.mean()) - entropy < 1


def test_densities_in_other_units_differ_by_the_logarithm_of_the_scale():
    x, power, _ = field(100)
    schedule, units = xhat.Cosine(-12.0, 14.0), Units((3.0,), (1e-3,))
    made = denoiser(power, schedule)
    plain = estimate_bound(made, x, field(50, 1)[0], decoder=density_decoder(schedule))
    scaled = estimate_bound(made, x, field(50, 1)[0], decoder=density_decoder(schedule, units.volume))
    assert scaled.bits_per_dim - plain.bits_per_dim == pytest.approx(math.log2(1e-3), abs=1e-9)
    ode = ode_likelihood(made, x[:2], dequantization=AsDensity(units.volume), trace=Exact())
    assert float((ode.bits_per_dim - math.log2(1e-3)).mean()) == pytest.approx(
        float(ode_likelihood(made, x[:2], dequantization=AsDensity(), trace=Exact()).bits_per_dim.mean()), abs=1e-9
    )


def test_the_ode_is_the_density_of_each_field():
    x, power, _ = field(3)
    schedule = xhat.Cosine(-12.0, 14.0)
    found = ode_likelihood(denoiser(power, schedule), x, dequantization=AsDensity(), trace=Exact()).bits_per_dim
    np.testing.assert_allclose(found, exact_bits(x, power), atol=2e-3)
