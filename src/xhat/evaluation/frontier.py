"""Sample quality against network calls: the fewest with which each sampler comes near the best."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xhat.data.shape import DataShape
from xhat.data.stack import Samples
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.distributed import ALONE, Shares, from_all
from xhat.evaluation.quality import Features
from xhat.sampling.generate import Sampling, rows_at_a_time

STEPS = (4, 6, 8, 12, 16, 24, 32, 50, 100, 250, 500, 1000)
NEAR = 0.05
"""Of the best distance: so far from it still counts as near."""


@dataclass(frozen=True)
class Point:
    """One way to draw samples, and what came of it.

    Attributes:
        sampler: its name.
        steps: it took.
        calls: samples that the network was shown for one that was made; guidance shows it each twice.
        fid: Fréchet distance to real images; inf of samples whose features are not finite.
        seconds: that drawing took.
    """

    sampler: str
    steps: int
    calls: float
    fid: float
    seconds: float


@dataclass(frozen=True)
class Frontier:
    """All ways that were tried.

    Attributes:
        points: in the order in which they were tried.
    """

    points: Sequence[Point]

    @property
    def best(self) -> Point:
        """The way with the lowest distance."""
        return min(self.points, key=lambda p: p.fid)

    def fewest(self, sampler: str, near: float = NEAR) -> Point | None:
        """The fewest calls with which a sampler comes as near to the lowest distance of all; None if it does not."""
        limit = (1 + near) * self.best.fid
        return min((p for p in self.points if p.sampler == sampler and p.fid <= limit), key=lambda p: p.calls, default=None)


def steps_up_to(most: int) -> list[int]:
    """The numbers of steps to try, `most` among them."""
    return [*(n for n in STEPS if n < most), most]


def frontier(
    denoiser: Denoiser,
    ways: Sequence[tuple[str, Sampling]],
    shape: DataShape,
    n: int,
    seen_in: Features,
    real: Samples,
    *,
    seed: int = 0,
    cond: Condition | None = None,
    progress: Callable[[int], None] | None = None,
    shares: Shares = ALONE,
) -> Frontier:
    """Draw n samples in each way, from the same noise, and measure them against real images.

    Args:
        denoiser: the model.
        ways: names of samplers, each with how it samples.
        shape: of the data.
        n: samples of each way.
        seen_in: features for the distance.
        real: the images to compare with.
        seed: of the noise.
        cond: as of `generate`.
        progress: called with the number of ways done so far.
        shares: of several processes.
    """
    of_real, points = seen_in.of(real, shares), list[Point]()
    for name, how in ways:
        rows = rows_at_a_time(
            denoiser, how.sampler, how.times, shape, how.guidance, cond, shares
        )  # beforehand: it calls the network
        shown, start = list[int](), time.perf_counter()
        hook = denoiser.net.register_forward_pre_hook(lambda net, args, shown=shown: shown.append(len(args[0])))
        try:
            samples, _ = how.generate(denoiser, shape, n, seed=seed, cond=cond, shares=shares, batch=rows)
        finally:
            hook.remove()
        seconds, calls = time.perf_counter() - start, sum(from_all(sum(shown))) / n
        of_samples = seen_in.of(samples, shares)
        finite = bool(torch.isfinite(of_samples).all())
        fid = seen_in.compare(of_samples, of_real).distance.fid if finite else math.inf
        points.append(Point(name, len(how.times) - 1, calls, fid, seconds))
        if progress is not None:
            progress(len(points))
    return Frontier(points)
