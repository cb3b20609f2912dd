"""The fewest network calls that come near the best distance."""

import pytest
import torch
from torch import nn

from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Cosine
from xhat.diffusion.targets import X0
from xhat.evaluation.frontier import Frontier, Point, frontier, steps_up_to
from xhat.evaluation.quality import Features
from xhat.sampling.generate import Sampling
from xhat.sampling.samplers import DDIM, DPMSolver2M, Heun
from xhat.sampling.spacings import uniform_times


class Exact(nn.Module):
    """The posterior mean of x0 ~ N(0, 1/4) on the cosine schedule: more steps of a sampler come nearer to it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z, t, label=None):
        schedule = Cosine()
        alpha, sigma = schedule.alpha(t.double()).float(), schedule.sigma(t.double()).float()
        return (alpha / 4 / (alpha**2 / 4 + sigma**2)).reshape(-1, 1, 1, 1) * z


class Pixels(nn.Module):
    def forward(self, images):
        return images.flatten(1)


@pytest.fixture(scope="module")
def found():
    """Of a Gaussian whose standard deviation is known: each sampler's error is that of its ODE steps."""
    denoiser, shape = Denoiser(Exact(), Cosine(), X0).eval(), DataShape(1, 2, None)
    real = (torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(1)) / 2 * 127.5 + 127.5).round().clamp(0, 255)
    ways = [
        (name, Sampling(sampler, uniform_times(denoiser.schedule, steps), 1.0))
        for name, sampler in {"ddim": DDIM(), "heun": Heun(), "dpm2m": DPMSolver2M()}.items()
        for steps in (2, 4, 16)
    ]
    return frontier(denoiser, ways, shape, 2000, Features(Pixels(), "pixels"), real.to(torch.uint8))


def test_calls_are_counted(found):
    calls = {(p.sampler, p.steps): p.calls for p in found.points}
    assert calls == {
        **{(name, n): n for name in ("ddim", "dpm2m") for n in (2, 4, 16)},
        **{("heun", n): 2 * n - 1 for n in (2, 4, 16)},  # one into t = 0
    }


def test_distances_are_those_of_the_samples(found):
    """Two steps of DDIM miss the spread by far, sixteen do not; a rule of higher order comes near in fewer calls."""
    fid = {(p.sampler, p.steps): p.fid for p in found.points}
    assert fid["ddim", 2] > 3 * fid["ddim", 16]
    assert fid["heun", 4] < fid["ddim", 4]


def test_the_fewest_calls_near_the_lowest():
    points = [Point("a", 4, 4, 1.2, 0), Point("a", 8, 8, 1.04, 0), Point("a", 16, 16, 1.0, 0), Point("b", 4, 7, 1.06, 0)]
    found = Frontier(points)
    assert found.best is points[2]
    assert found.fewest("a") is points[1]
    assert found.fewest("b") is None
    assert found.fewest("b", near=0.1) is points[3]


def test_steps_end_at_the_most():
    assert steps_up_to(50) == [4, 6, 8, 12, 16, 24, 32, 50]
    assert steps_up_to(5) == [4, 5]
    assert steps_up_to(3) == [3]
