"""How the time of a training step grows: with the images of a batch, their pixels, the terms, the steps of a chain, and T.

usage: python benchmarks/growth.py [--rounds 9] [--json FILE]

Each axis takes five sizes, which take turns in one process; medians over the rounds. Beside them is the straight line through
the medians that makes the largest deviation, in proportion to the time, least: where that is small, nothing grows faster
than what was asked for. Of T the step has nothing to do, and the bound over all T steps as much as T says.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import machine
from scipy.optimize import linprog
from usage import Parser, count, guarded

import xhat
from xhat import Cosine, Denoiser, Denoising, Discrete, FullChain, ImageLoss, Objective, OneStep, Term, V
from xhat.losses.penalties import total_variation
from xhat.networks.unet import UNet
from xhat.sampling.differentiate import AllSteps
from xhat.sampling.samplers import DDIM

WIDTHS, BATCH, SIDE = (16, 32), 32, 28
Run = Callable[[], object]
"""Does the work of one size once."""


def training(side: int = SIDE, batch: int = BATCH, terms: int = 0, chain: int = 0, steps: int = 0) -> Run:
    """A training step of the small U-Net."""
    torch.manual_seed(0)
    net = UNet(size=side, widths=WIDTHS)
    denoiser = Denoiser(net, Discrete.cosine_beta(steps) if steps else Cosine(), V)
    all_terms = {"denoise": Term(Denoising(V))}
    image = FullChain(DDIM(), chain, AllSteps()) if chain else OneStep()
    all_terms |= {f"smooth{i}": Term(ImageLoss(total_variation, image), 0.01) for i in range(terms)}
    objective = Objective(denoiser, all_terms)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    x0, number = 2 * torch.rand(batch, 1, side, side) - 1, iter(range(10**9))

    def step() -> None:
        objective(x0, step=next(number))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bound(steps: int) -> Run:
    """The bound of eight images, all T steps of it."""
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(size=SIDE, widths=WIDTHS), Discrete.cosine_beta(steps), V)
    x0 = torch.randint(0, 256, (8, 1, SIDE, SIDE)) / 127.5 - 1

    def whole() -> object:
        with torch.no_grad():
            return xhat.variational_bound(denoiser, x0)

    return whole


AXES: dict[str, tuple[Callable[[int], Run], list[int], Callable[[int], int]]] = {
    "images in a batch": (lambda n: training(batch=n), [16, 32, 64, 96, 128], lambda n: n),
    "pixels of an image": (lambda side: training(side=side), [16, 24, 32, 40, 48], lambda side: side**2),
    "terms on the predicted image": (lambda n: training(terms=n), [0, 2, 4, 6, 8], lambda n: n),
    "steps of a differentiated chain": (lambda n: training(terms=1, chain=n, batch=8), [5, 10, 20, 30, 40], lambda n: n),
    "T, a training step": (lambda n: training(steps=n), [250, 500, 1000, 2000, 4000], lambda n: n),
    "T, the whole bound": (bound, [25, 50, 100, 150, 200], lambda n: n),
}
"""name -> (what is run for a size, the sizes, what the time should be a line in)."""


def measured(make: Callable[[int], Run], sizes: list[int], rounds: int) -> list[list[float]]:
    """Seconds of each size in each round, after one to warm up."""
    runs = [make(size) for size in sizes]
    seconds: list[list[float]] = [[] for _ in sizes]
    for round_ in range(rounds + 1):
        for run, own in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            if round_:
                own.append(time.perf_counter() - start)
    return seconds


def line(x: list[int], y: list[float]) -> tuple[float, float, float]:
    """The slope, the value at 0, and the largest |deviation| in proportion to y, of the line that makes that least."""
    one, x_, y_ = np.ones(len(x)), np.array(x, dtype=float), np.array(y)
    above, below = np.stack([x_, one, -y_], axis=1), np.stack([-x_, -one, -y_], axis=1)
    found = linprog(
        [0, 0, 1], np.concatenate([above, below]), np.concatenate([y_, -y_]), bounds=[(None, None)] * 2 + [(0, None)]
    )
    slope, start, apart = found.x
    return float(slope), float(start), float(apart)


def main() -> None:
    """Measure and print."""
    parser = Parser(description="how the time of a step grows")
    parser.add_argument("--rounds", type=count, default=9, help="turns of each size, beside one to warm up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all seconds go")
    options: argparse.Namespace = parser.parse_args()
    if options.json:
        options.json.touch()  # so that a wrong name is said before the minutes of measuring
    print(machine())
    kept = {}
    for name, (make, sizes, of) in AXES.items():
        seconds = measured(make, sizes, options.rounds)
        x, medians = [of(size) for size in sizes], [statistics.median(own) for own in seconds]
        slope, start, apart = line(x, medians)
        print(f"\n{name}")
        print("  " + "".join(f"{value:10,}" for value in x))
        print("  " + "".join(f"{1e3 * value:10.1f}" for value in medians) + "  ms")
        print(f"  {1e3 * start:.1f} ms + {1e6 * slope:.2f} us each; at most {apart:.1%} from this line", flush=True)
        kept[name] = dict(zip(map(str, x), seconds, strict=True))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "seconds": kept}))


if __name__ == "__main__":
    guarded(main)
