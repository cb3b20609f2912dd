"""A learned uncertainty: its optimum, its start, and the two summands of its loss."""

import pytest
import torch
from torch import nn

import xhat
from oracles import SCHEDULES, GaussianData, ScaledX0
from xhat import NOISE, X0, Denoiser, Denoising, LearnedUncertainty, Objective, Term, V, min_snr
from xhat.diffusion.weightings import from_density

LOGSNR = torch.linspace(-9, 9, 37, dtype=torch.float64)
VP = xhat.Cosine()


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_it_finds_the_log_of_the_mean_loss():
    """min_u E[L e^-u + u] is u = log E[L | logsnr] (EDM2, eq. 15): after fitting, every level contributes 1."""
    own = LearnedUncertainty(Denoising(), features=64).double()
    logsnr = torch.linspace(-6, 6, 64, dtype=torch.float64)
    loss = torch.exp(0.3 * logsnr.sin() - 1.5)
    optimizer = torch.optim.LBFGS(own.parameters(), max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = (own.weighting(logsnr, VP) * loss + own.uncertainty(logsnr)).mean()
        value.backward()
        return value

    optimizer.step(closure)
    close(own.uncertainty(logsnr).detach(), loss.log(), rtol=0, atol=2e-2)
    close((own.weighting(logsnr, VP) * loss).detach(), torch.ones(64).double(), rtol=2e-2)


def test_it_starts_as_the_loss_that_it_balances():
    own = LearnedUncertainty(Denoising(X0, min_snr(5)))
    close(own.weighting(LOGSNR, VP).detach(), LOGSNR.exp().clamp(max=5), rtol=1e-6)


@pytest.mark.parametrize(
    "loss", [Denoising(NOISE), Denoising(X0, min_snr(5)), xhat.Increment()], ids=["noise", "x0", "increment"]
)
def test_the_loss_is_the_balanced_one_and_the_offset(loss):
    """outer (L e^-u + u) (EDM2, eq. 14), with u and outer of any size."""
    schedule, outer = SCHEDULES["linear_beta"](), from_density(xhat.times.LogitNormal())
    own = LearnedUncertainty(loss, outer)
    nn.init.constant_(own.gains, 0.1)
    denoiser = Denoiser(ScaledX0(schedule, V), schedule, V)
    x0 = GaussianData().sample(8, torch.Generator().manual_seed(0))
    draw = Objective(denoiser, {"d": Term(Denoising())}).draw(x0, step=1)
    logsnr = schedule.logsnr(draw.t)
    u, w = own.uncertainty(logsnr), outer(logsnr, schedule)
    close(own(denoiser, draw), w * (loss(denoiser, draw) * torch.exp(-u) + u), rtol=1e-5)
    close(own.offset(denoiser, draw), w * u, rtol=1e-6)


def test_only_a_denoising_loss_can_be_balanced():
    with pytest.raises(ValueError, match=r"is a loss, no weighting: put it around this one, LearnedUncertainty\(Denoising"):
        Denoising(X0, weighting=LearnedUncertainty(Denoising()))


def test_the_state_of_a_weighting_of_before_is_read():
    """Its parameters had one name more; also inside of a hybrid."""
    own = LearnedUncertainty(Denoising(), features=3)
    for loss, prefix in ((own, ""), (xhat.Hybrid(simple=LearnedUncertainty(Denoising(), features=3)), "simple.")):
        before = {f"{prefix}weight.{name}": torch.full((3,), 2.0) for name in ("gains", "frequencies", "phases")}
        loss.load_state_dict(before)
        assert all((value == 2).all() for value in loss.state_dict().values())


@pytest.mark.parametrize("kind", [LearnedUncertainty, xhat.VariationalBound])
def test_a_loss_is_no_weighting(kind):
    with pytest.raises(ValueError, match="is a loss, no weighting: put it around this one"):
        Denoising(X0, weighting=kind)
