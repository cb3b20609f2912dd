"""The error per noise level of an exact denoiser is the closed form, and one function has one error, whatever it predicts."""

import math

import pytest
import torch

from oracles import SCHEDULES, STEP_TARGETS, TARGETS, GaussianData, ScaledX0, exact
from xhat import NOISE, X0, Cosine, Denoiser, Discrete, Flow, V
from xhat.diffusion.schedules import LinearLogSNR
from xhat.diffusion.targets import POSTERIOR_MEAN
from xhat.evaluation.denoising import LEVELS, bits_between, denoising_error, reached, summary, x0_errors

DATA = GaussianData()


def images(n):
    return DATA.sample(n, torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize(
    ("schedule", "target"),
    [(Cosine(), V), (Flow(), X0), (Cosine(), NOISE), (Discrete.linear_beta(100, 1e-3, 0.2), POSTERIOR_MEAN)],
    ids=["cosine-v", "flow-x0", "cosine-noise", "discrete-posterior_mean"],
)
def test_exact_denoiser_has_the_closed_form(schedule, target):
    """E (x0 - E[x0|z])² = std² sigma²/(alpha² std² + sigma²), within four standard errors at each level."""
    found = denoising_error(exact(DATA, schedule, target).float(), images(20000), batch=5000)
    snr = torch.tensor(found.logsnr).exp()
    expected = DATA.std**2 / (snr * DATA.std**2 + 1)
    assert len(found.logsnr) >= 14
    for value, se, true in zip(found.x0_error, found.x0_error_se, expected.tolist(), strict=True):
        assert abs(value - true) < 4 * se
        assert se < 0.02 * true


def test_the_integral_is_the_mutual_information_gained():
    """½ ∫ mmse dSNR = ½ log(1 + std² SNR) between its ends (Guo, Shamai & Verdú 2005), in bits; the grid is fine enough."""
    found = denoising_error(exact(DATA, Cosine()).float(), images(20000), batch=5000)
    low, high = (math.log2(1 + DATA.std**2 * math.exp(level)) / 2 for level in (LEVELS[0], LEVELS[-1]))
    assert found.bits_per_dim == pytest.approx(high - low, abs=4 * found.bits_per_dim_se + 2e-3)
    assert found.bits_per_dim_se < 0.01


NETS = [("cosine", t) for t in TARGETS] + [("linear_beta", t) for t in (*TARGETS, *STEP_TARGETS)] + [("flow", V), ("ve", X0)]


@pytest.mark.parametrize(("schedule", "target"), NETS, ids=[f"{s}-{t}" for s, t in NETS])
def test_equal_functions_get_equal_evaluations(schedule, target):
    """One function of (z/alpha, logsnr) through every target: the same error at every level and the same bits, to 1e-5."""
    reference = denoising_error(exact(DATA, Cosine(), V).float(), images(200), logsnr=range(-5, 7))
    other = SCHEDULES[schedule]()
    found = denoising_error(exact(DATA, other, target).float(), images(200), logsnr=range(-5, 7))
    assert reached(other, range(-5, 7)) == found.logsnr == reference.logsnr[: len(found.logsnr)]
    assert found.x0_error == pytest.approx(reference.x0_error[: len(found.logsnr)], rel=1e-5)
    if len(found.logsnr) == len(reference.logsnr):
        assert found.bits_per_dim == pytest.approx(reference.bits_per_dim, rel=1e-5)


def test_other_functions_get_other_evaluations():
    """The test above can fail: a network that is a hundredth off has other errors."""
    schedule = Cosine()
    a, b = (denoising_error(Denoiser(ScaledX0(schedule, V, s), schedule, V).float(), images(200)) for s in (0.7, 0.707))
    assert a.bits_per_dim != pytest.approx(b.bits_per_dim, rel=1e-4)


def test_noise_depends_on_the_image_and_the_level_alone():
    """Measured in other batches, from other levels, an image's errors are the same."""
    model, x0 = exact(DATA, Cosine()).float(), images(70)
    whole = x0_errors(model, x0, logsnr=[-2.0, 3.0], batch=70)
    assert torch.equal(whole, x0_errors(model, x0, logsnr=[-2.0, 3.0], batch=32))
    assert torch.equal(whole[1:], x0_errors(model, x0, logsnr=[3.0]))
    assert not torch.equal(whole, x0_errors(model, x0, logsnr=[-2.0, 3.0], seed=1))


def test_levels_outside_of_a_schedule_are_left_out():
    assert reached(LinearLogSNR(-5, 6)) == [float(level) for level in range(-5, 7)]
    with pytest.raises(ValueError, match=r"spans logsnr 0.1 to 0.2"):
        reached(LinearLogSNR(0.1, 0.2))


def test_summary_by_hand():
    errors = torch.tensor([[1.0, 3.0], [2.0, 2.0]], dtype=torch.float64)
    found = summary(errors, [0.0, 2.0])
    bits = [(a + b * math.exp(2)) / (2 * math.log(2)) for a, b in ((1, 2), (3, 2))]
    assert bits_between(errors, [0.0, 2.0]).tolist() == pytest.approx(bits)
    assert (found.x0_error, found.x0_error_se) == ([2.0, 2.0], [pytest.approx(1.0), 0.0])
    assert found.density == pytest.approx([1 / math.log(2), math.exp(2) / math.log(2)])
    assert found.bits_per_dim == pytest.approx(sum(bits) / 2)
    assert found.bits_per_dim_se == pytest.approx(abs(bits[1] - bits[0]) / 2)
