"""What compiling the network buys while samples are drawn.

usage: python benchmarks/sampling.py RUN [IMAGES] [ROUNDS]

A run's samples as `xhat sample RUN` draws them, and as `xhat sample RUN --compile` does, in turns in one process; medians over
the rounds. Compiling is paid once, before them, with nothing of an earlier call to start from: so many images repay it.
"""

import os
import statistics
import tempfile
import time
from functools import partial

from record import machine
from torch import Tensor
from usage import Parser, count, guarded

import xhat
from xhat.config.build import build_sampling
from xhat.distributed import ALONE
from xhat.runs.load import TrainedRun
from xhat.sampling.compiled import compiled
from xhat.sampling.generate import rows_at_a_time


def seconds(draw: partial[tuple[Tensor, Tensor | None]], seed: int) -> tuple[float, Tensor]:
    """Of one call, and what it drew."""
    start = time.perf_counter()
    images, _ = draw(seed=seed)
    return time.perf_counter() - start, images


def main() -> None:
    """Draw and print."""
    parser = Parser(description="what compiling buys while samples are drawn")
    parser.add_argument("run", metavar="RUN")
    for name, default in {"images": 250, "rounds": 7}.items():
        parser.add_argument(name, nargs="?", type=count, default=default, metavar=name.upper())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        measure(xhat.load(given.run), given.images, given.rounds)


def measure(trained: TrainedRun, images: int, rounds: int) -> None:
    """Draw in turns, and print."""
    net = trained.denoiser.net
    sampling = build_sampling(trained.config.sampling, trained.denoiser.schedule)
    draw = partial(sampling.generate, trained.denoiser, trained.shape, images)
    of_model = trained.denoiser, sampling.sampler, sampling.times, trained.shape, sampling.guidance
    batch = rows_at_a_time(*of_model, None, ALONE)
    print(f"{machine()}; {images} images, {min(batch, images)} at a time at most")
    eager: list[float] = []
    fast: list[float] = []
    apart = 0
    with compiled(net):
        once, _ = seconds(draw, 0)
        kept = net._compiled_call_impl
        for round_ in range(rounds):
            for called, own in ((None, eager), (kept, fast)):
                net._compiled_call_impl = called
                taken, drawn = seconds(draw, round_)
                own.append(taken)
                if called is None:
                    before = drawn
            apart = max(apart, int((before.int() - drawn.int()).abs().max()))
    plain, quick = statistics.median(eager), statistics.median(fast)
    print(f"as it is   {images / plain:8.1f} images/s, {min(eager):.2f} to {max(eager):.2f} s")
    print(f"compiled   {images / quick:8.1f} images/s, {min(fast):.2f} to {max(fast):.2f} s")
    print(f"           {plain / quick:8.2f} times as many, at most {apart} of 255 levels apart")
    print(f"compiling  {once - quick:8.1f} s", end="")
    print(f", repaid by {(once - quick) / (plain - quick) * images:,.0f} images" if plain > quick else ", never repaid")


if __name__ == "__main__":
    guarded(main)
