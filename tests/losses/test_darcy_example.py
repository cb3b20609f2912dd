"""The example on Darcy flow: its residual is that of its solver, and its sampler mends."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import xhat
from xhat import registry


@pytest.fixture(scope="module")
def example():
    """The example's modules; what they register is forgotten, for commands of other tests take every sampler there is."""
    import xhat.config.names  # noqa: F401  # what registers xhat's own

    kept = [family.names() for family in registry.FAMILIES]
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "darcy"))
    import parts
    import solve

    for family, names in zip(registry.FAMILIES, kept, strict=True):
        family.restore(names)
    return solve, parts


@pytest.fixture(scope="module")
def solved(example):
    solve, _ = example
    logs = solve.log_permeabilities(2, seed=0)
    p = np.stack([solve.pressure(np.exp(log_k), solve.source()) for log_k in logs])
    return torch.from_numpy(np.stack([logs, p], 1))


def test_solutions_have_no_residual_and_others_do(example, solved):
    _, parts = example
    assert solved[:, 1].mean((1, 2)).abs().max() < 1e-12
    assert parts.darcy_error(solved).max() < 1e-9
    assert parts.darcy_error(solved.float()).max() < 1e-3
    assert parts.darcy_error(solved + 1e-3 * torch.randn_like(solved)).min() > 0.1
    total = parts.residual(solved + torch.randn_like(solved)).sum((1, 2))  # walls let nothing through: what flows out flows in
    assert total.abs().max() < 1e-6


def test_the_residual_is_the_equation(example):
    """Of k = 1 and p = cos(pi x), away from the source: -pi² cos(pi x), to second order."""
    _, parts = example

    def error(side):
        x = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        p = torch.cos(torch.pi * x)[:, None].expand(side, side)
        found = parts.residual(torch.stack([torch.zeros_like(p), p])[None])[0]
        away = slice(side // 4, side // 2)
        return (found + torch.pi**2 * p)[away, away].abs().max()

    assert error(32) / error(64) == pytest.approx(4, rel=0.05)


def test_mended_samples_have_less_of_it(example, solved):
    _, parts = example

    class Known(torch.nn.Module):
        """Predicts the solutions, a little off."""

        def forward(self, z, t):
            return solved.float() + 1e-3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))

    denoiser = xhat.Denoiser(Known(), xhat.Cosine(), xhat.X0)
    start = torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    times = xhat.uniform_times(denoiser.schedule, 20)
    plain, mended = (xhat.sample(denoiser, sampler, start, times) for sampler in (xhat.DDIM(), parts.Mended(times=200)))
    assert float(parts.darcy_error(mended).mean()) < 0.5 * float(parts.darcy_error(plain).mean())
