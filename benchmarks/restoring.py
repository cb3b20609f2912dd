"""Digits restored from what was measured of them, each task by several ways to steer the same trained model.

    python benchmarks/restoring.py runs/demo --picture docs/assets/restored.png

Every way draws by 50 steps of DDPM from the same noise, without a class. "measured" is the root mean square of A x - y, of
which the noise of the measurement is 0.05, for images in [-1, 1]; "error" is that of x itself against the digit that was
measured: a sample of the posterior need not have a small one. "read right" is how often the shipped digit network sees the
digit's own label. The picture has the digits, then of each task what was measured and what MMPS and, where it can, RePaint
made of it.
"""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from record import machine
from torch import Tensor
from usage import Parser, count, guarded

import xhat
from xhat.data.images import to_float
from xhat.data.load import load
from xhat.data.shape import DataShape
from xhat.evaluation.pictures import grid
from xhat.networks.digits import mnist_features
from xhat.runs.load import TrainedRun
from xhat.sampling.samplers import DDPM
from xhat.sampling.steering import DPS, MMPS, MPGD, Blur, Hide, Linear, PiGDM, RePaint, Shrink, Steering, guided_by, root

NOISE, STEPS, SHOWN, DRAWN = 0.05, 50, 10, ("MMPS(y, 3)", "RePaint(5)")
TASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "inpainting, 12 x 12 hidden": Hide((8, 20), (8, 20)),
    "4 x 4 means": Shrink(4),
    "blur of 2 pixels": Blur(2.0),
}


def ways(task: Callable[[Tensor], Tensor], y: Tensor) -> dict[str, Steering | None]:
    """By name; None is the model alone."""
    own = Linear(task, y, NOISE)
    found: dict[str, Steering | None] = {
        "nothing": None,
        "MMPS(y, 1)": MMPS(own, 1),
        "MMPS(y, 3)": MMPS(own, 3),
        "PiGDM(y, 2.4)": PiGDM(own, 2.4),
        "DPS(root(y), 1)": DPS(root(Linear(task, y)), 1.0),
        "MPGD(y, 20)": MPGD(Linear(task, y), 20.0),
    }
    if isinstance(task, Hide):
        found["RePaint(5)"] = RePaint(y, task, 5)
    return found


def main() -> None:
    parser = Parser(prog="restoring.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run of digits, as xhat train mnist makes it")
    parser.add_argument("--picture", type=Path, help="where a picture of some goes")
    parser.add_argument("--n", type=count, default=200, help="digits of each")
    given = parser.parse_args()
    measure(xhat.load(given.run), given)


def measure(trained: TrainedRun, given: Namespace) -> None:
    """Print the table, draw the picture."""
    digits = load("mnist", 28, "test")
    truth = to_float(torch.as_tensor(digits.pixels[: given.n]))
    assert digits.labels is not None
    labels = digits.labels[: given.n]
    reader, draw = mnist_features(), torch.Generator().manual_seed(0)
    rows: list[Tensor] = [truth[:SHOWN]]
    print(f"{machine()}; {given.n} test digits, {STEPS} steps of DDPM")
    print(f"{'task':28} {'steered by':17} {'measured':>9} {'error':>7} {'read right':>11} {'s':>6}")
    for name, task in TASKS.items():
        exact = task(truth)
        y = exact + NOISE * torch.randn(exact.shape, generator=draw)
        y = task(y) if isinstance(task, Hide) else y
        seen = y if y.shape == truth.shape else y.repeat_interleave(4, -1).repeat_interleave(4, -2)
        rows.append(seen[:SHOWN])
        for way, steering in ways(task, y).items():
            start = time.perf_counter()
            found = drawn(trained, steering, given.n)
            took = time.perf_counter() - start
            rms = (task(found) - y).square().mean().sqrt()
            error = (found - truth).square().mean().sqrt()
            right = (reader.read(reader(found)).argmax(1) == labels).float().mean()
            print(f"{name:28} {way:17} {rms:9.3f} {error:7.3f} {100 * right:10.1f}% {took:6.1f}")
            if way in DRAWN:
                rows.append(found[:SHOWN])
    if given.picture:
        grid(torch.cat(rows), SHOWN).save(given.picture)


def drawn(trained: TrainedRun, steering: Steering | None, n: int) -> Tensor:
    """Samples in [-1, 1], drawn without a class."""
    denoiser, shape = trained.denoiser, trained.shape
    sampler = DDPM() if steering is None else guided_by(steering, sampler=DDPM())
    floats = DataShape(shape.channels, shape.size, shape.classes, range=None)
    times = xhat.uniform_times(denoiser.schedule, STEPS)
    found, _ = xhat.generate(denoiser, sampler, floats, n, times=times, guidance=0.0)
    return found.clamp(-1, 1)


if __name__ == "__main__":
    guarded(main)
