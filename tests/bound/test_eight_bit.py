"""Probabilities of 8-bit images: the discretized Gaussian and the softmax over levels, in all tails."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from xhat.bound.eight_bit import DiscretizedGaussian, bin_index, log_normal_mass, softmax_decoder

LEVELS = torch.arange(256, dtype=torch.float64) * (2 / 255) - 1


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def pixel(value, dtype=torch.float64):
    """One image of one pixel."""
    return torch.full((1, 1, 1, 1), value, dtype=dtype)


def pixels(values):
    return values.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.1, 0.99, 40.0])
@pytest.mark.parametrize("log_variance", [-14.0, -6.0, 0.0, 4.0])
@pytest.mark.trap(11)
def test_the_256_bins_sum_to_one(mean, log_variance):
    p = DiscretizedGaussian(pixel(mean).expand(256, 1, 1, 1), pixel(log_variance))
    assert p.log_prob(pixels(LEVELS)).exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.1, -4.0), (-0.97, -8.0), (2.0, -3.0), (-30.0, 0.0), (200.0, 2.0)])
@pytest.mark.trap(11)
def test_bins_equal_high_precision_values(mean, log_variance):
    std = math.exp(log_variance / 2)
    for k in (0, 1, 7, 128, 254, 255):
        with mpmath.workdps(60):
            x, m, s = mpmath.mpf(2 * k) / 255 - 1, mpmath.mpf(mean), mpmath.mpf(std)
            low = mpmath.mpf(0) if k == 0 else mpmath.erfc(-(x - mpmath.mpf(1) / 255 - m) / s / mpmath.sqrt(2)) / 2
            far = mpmath.erfc((x - mpmath.mpf(1) / 255 - m) / s / mpmath.sqrt(2)) / 2 if k else mpmath.mpf(1)
            high = mpmath.erfc(-(x + mpmath.mpf(1) / 255 - m) / s / mpmath.sqrt(2)) / 2 if k < 255 else mpmath.mpf(1)
            above = mpmath.erfc((x + mpmath.mpf(1) / 255 - m) / s / mpmath.sqrt(2)) / 2 if k < 255 else mpmath.mpf(0)
            exact = float(mpmath.log(high - low if m > x else far - above))
        p = DiscretizedGaussian(pixel(mean), pixel(log_variance))
        assert p.log_prob(LEVELS[k].reshape(1, 1, 1, 1)).item() == pytest.approx(exact, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_variance", [-12.0, -5.0])
@pytest.mark.parametrize("mean", [-50.0, -2.0, 1.5, 50.0])
@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.trap(11)
def test_a_far_off_mean_is_pulled_back(dtype, log_variance, mean, level):
    """Finite and, unless the bin is the open one on the mean's side, with a gradient of size |distance|/variance."""
    m, lv = (pixel(v, dtype).requires_grad_() for v in (mean, log_variance))
    x = LEVELS[level].to(dtype).reshape(1, 1, 1, 1)
    value = DiscretizedGaussian(m, lv).log_prob(x)
    assert torch.isfinite(value).all()
    slope, spread = (g.item() for g in torch.autograd.grad(value.sum(), (m, lv)))
    assert math.isfinite(slope)
    assert math.isfinite(spread)
    inside = (level == 0 and mean < -1) or (level == 255 and mean > 1)
    if inside:
        assert value.item() == pytest.approx(0, abs=1e-6)
    else:
        edge = x.item() + math.copysign(1 / 255, mean - x.item())  # the mass sits at the bin's near edge
        assert slope == pytest.approx((edge - mean) / math.exp(log_variance), rel=0.02)


@given(mean=st.floats(-2, 2), log_variance=st.floats(-9, 3), level=st.integers(0, 255))
@pytest.mark.trap(11)
def test_decoder_gradients_by_finite_differences(mean, log_variance, level):
    x = LEVELS[level].reshape(1, 1, 1, 1)
    inputs = [pixel(v).requires_grad_() for v in (mean, log_variance)]
    slopes = torch.autograd.grad(DiscretizedGaussian(*inputs).log_prob(x).sum(), inputs)
    for i, slope in enumerate(slopes):
        h = 1e-5 * math.exp(log_variance / 2) if i == 0 else 1e-5
        moved = [[v.detach() + (sign * h if i == j else 0) for j, v in enumerate(inputs)] for sign in (1, -1)]
        up, down = (DiscretizedGaussian(*m).log_prob(x) for m in moved)
        scale = max(1.0, abs(up.item()))  # the difference of two numbers of this size, over h
        assert slope.item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-4, abs=1e-9 * scale / h)


@pytest.mark.parametrize("centre", [-40.0, -5.0, 0.0, 5.0, 40.0])
@pytest.mark.parametrize("width", [1e-3, 1.0, 100.0])
def test_log_normal_mass_equals_scipy_in_the_tail_where_it_is_resolved(centre, width):
    low, high = -abs(centre) - width / 2, -abs(centre) + width / 2
    a, b = special.log_ndtr(low), special.log_ndtr(high)
    reference = b + np.log1p(-np.exp(a - b))
    for sign in (1, -1):
        lower, upper = sorted((sign * low, sign * high))
        got = log_normal_mass(pixel(lower), pixel(upper)).item()
        assert got == pytest.approx(reference, rel=1e-9, abs=1e-9)


def test_float32_mass_of_narrow_bins_is_as_good_as_float32():
    """Wide Gaussians make thin bins: a relative error of 2^-24 · 1/width at most, not worse."""
    m, lv = torch.zeros(256, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    x = pixels(LEVELS)
    wide = DiscretizedGaussian(m.double(), lv.double()).log_prob(x)
    close(DiscretizedGaussian(m, lv).log_prob(x.float()).double(), wide, rtol=0, atol=4e-4)


@pytest.mark.parametrize("bad", [0.5, -1.3, 1.02, float("nan")])
@pytest.mark.trap(11)
def test_latents_are_refused(bad):
    x = torch.full((1, 1, 1, 1), bad).double()
    with pytest.raises(ValueError, match="8-bit"):
        DiscretizedGaussian(torch.zeros_like(x), torch.zeros_like(x)).log_prob(x)
    with pytest.raises(ValueError, match="8-bit"):
        softmax_decoder(x, x, torch.ones(1).double(), torch.ones(1).double())


def test_bin_index_reads_all_levels_in_float32():
    assert torch.equal(bin_index(torch.arange(256).float() / 127.5 - 1), torch.arange(256))


@pytest.mark.parametrize("z", [-1.7, 0.003, 0.9])
@pytest.mark.parametrize("sigma", [1e-3, 0.05, 2.0])
def test_softmax_decoder_is_bayes_over_levels_and_sums_to_one(z, sigma):
    alpha = math.sqrt(1 - min(sigma, 0.9) ** 2)
    images, latents = pixels(LEVELS), pixel(z).expand(256, 1, 1, 1)
    log_p = softmax_decoder(images, latents, *(pixel(v).expand(256, 1, 1, 1).flatten() for v in (alpha, sigma)))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    log_joint = -0.5 * (z - alpha * LEVELS.numpy()) ** 2 / sigma**2
    close(log_p, torch.from_numpy(log_joint - special.logsumexp(log_joint)), rtol=1e-9, atol=1e-9)


@pytest.mark.trap(12)
def test_no_nan_gradient_from_the_branches_not_taken():
    """One batch that takes every branch: open ends, both tails, body, with small and large variance, in float32."""
    x = pixels(LEVELS[[0, 0, 1, 128, 128, 254, 255, 255]].float())
    for log_variance in (-30.0, -10.0, 0.0, 9.0):  # up to the forward variance of VE at sigma = 80
        mean = pixels(torch.tensor([-9.0, 9.0, 0.0, 9.0, -9.0, 0.0, -9.0, 9.0])).requires_grad_()
        lv = torch.full((1, 1, 1, 1), log_variance, requires_grad=True)
        value = DiscretizedGaussian(mean, lv).log_prob(x)
        assert torch.isfinite(value).all()
        for grad in torch.autograd.grad(value.sum(), (mean, lv)):
            assert torch.isfinite(grad).all()
