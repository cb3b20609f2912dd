"""The error per noise level of an exact denoiser is the closed form, whatever it predicts."""

import pytest
import torch

from oracles import GaussianData, exact
from xhat import NOISE, POSTERIOR_MEAN, X0, Cosine, Discrete, Flow, V
from xhat.evaluation.denoising import denoising_error

DATA = GaussianData()


def measure(schedule, target, n=20000):
    x0 = DATA.sample(n, torch.Generator().manual_seed(0)).float()
    return denoising_error(exact(DATA, schedule, target).float(), x0, levels=6, batch=5000)


@pytest.mark.parametrize(
    ("schedule", "target"),
    [(Cosine(), V), (Flow(), X0), (Cosine(), NOISE), (Discrete.linear_beta(100, 1e-3, 0.2), POSTERIOR_MEAN)],
    ids=["cosine-v", "flow-x0", "cosine-noise", "discrete-posterior_mean"],
)
def test_exact_denoiser_has_the_closed_form(schedule, target):
    """E (x0 - E[x0|z])² = std² sigma²/(alpha² std² + sigma²), within four standard errors at each level."""
    found = measure(schedule, target)
    snr = torch.tensor(found.logsnr).exp()
    expected = DATA.std**2 / (snr * DATA.std**2 + 1)
    assert len(found.logsnr) >= 5
    for value, se, true in zip(found.x0_error, found.x0_error_se, expected.tolist(), strict=True):
        assert abs(value - true) < 4 * se
        assert se < 0.02 * true


def test_equal_functions_have_equal_errors():
    first, second = (measure(Cosine(), target, 2000) for target in (V, X0))
    assert first.x0_error == pytest.approx(second.x0_error, rel=1e-4)
    assert first.logsnr == second.logsnr
