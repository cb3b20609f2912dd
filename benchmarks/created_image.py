"""What a loss on the created image costs: time and peak memory of a training step, beside the base loss and the naive chain.

usage: python benchmarks/created_image.py [STEPS] [BATCH] [ROUNDS] [LONG]

The network of the mnist preset at batch 64, total variation. Each variant runs in a process of its own, whose peak resident
memory is the kernel's figure, and the variants take turns. The one-step loss is to cost at most 10 % more time than the base
loss; a chain of 50 steps at most 1.05 times the memory of the one-step training step, and at most 1.3 times the time of the
naive chain, which keeps every activation. Then a chain of LONG steps of 8 images, whose own images are kept, or taken back.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from usage import counts

import xhat
from xhat import DDIM, Denoising, FullChain, ImageLoss, Last, OneStep, Term, V
from xhat.sampling.differentiate import AllSteps, Reversible
from xhat.sampling.samplers import Leapfrog

FEW = 8
"""Images of the long chains."""


def build(variant: str, steps: int) -> xhat.Objective:
    """The objective of a variant."""
    torch.manual_seed(0)
    denoiser = xhat.Denoiser(xhat.UNet(widths=(32, 64), blocks=(1, 4)), xhat.Cosine(), V)
    base = {"denoise": Term(Denoising(space=V))}
    images = {
        "base loss alone": None,
        "one step": OneStep(),
        "chain": FullChain(DDIM(), steps, AllSteps()),
        "reversible chain": FullChain(Leapfrog(), steps, Reversible()),
        "last 1": FullChain(DDIM(), steps, Last(1)),
        "naive chain": FullChain(DDIM(), steps, AllSteps(), checkpoint=False),
    }
    image = images[variant]
    terms = base if image is None else {**base, "smooth": Term(ImageLoss(xhat.penalties.total_variation, image), 0.1)}
    return xhat.Objective(denoiser, terms)


def measure(variant: str, steps: int, batch: int) -> dict[str, float]:
    """Median seconds of a step, and the peak memory of this process, in MB."""
    torch.set_num_threads(2)
    objective = build(variant, steps)
    x0 = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    optimizer = torch.optim.AdamW(objective.parameters())
    repeats = (3 if steps < 200 else 1) if "chain" in variant or "last" in variant else 30
    seconds = []
    for step in range(repeats + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        objective(x0, step=step)["loss"].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[1:]),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def medians(variants: list[str], steps: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Of each variant's processes, which take turns."""
    found: dict[str, list[dict[str, float]]] = {v: [] for v in variants}
    for _ in range(rounds):
        for variant in variants:
            command = [sys.executable, __file__, "--child", variant, str(steps), str(batch)]
            found[variant].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    median = {v: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for v, rows in found.items()}
    print(f"batch {batch}, chains of {steps} steps, median of {rounds} processes each")
    print(f"{'':16}  {'s a step':>9}  {'peak MB':>8}")
    for variant, row in median.items():
        print(f"{variant:16}  {row['seconds']:9.3f}  {row['megabytes']:8.0f}", flush=True)
    return median


def main() -> None:
    """The tables."""
    steps, batch, rounds, long = counts(steps=50, batch=64, rounds=3, long=1000)
    variants = ["base loss alone", "one step", "last 1", "chain", "reversible chain", "naive chain"]
    median = medians(variants, steps, batch, rounds)

    def ratio(what: str, beside: str, of: str, most: float) -> None:
        found = median[what][of] / median[beside][of]
        name = f"{what} / {beside}, {'time' if of == 'seconds' else 'peak memory'}:"
        print(f"{name:45}{found:.3f}  (<= {most:.2f})")

    ratio("one step", "base loss alone", "seconds", 1.1)
    for chain in ("chain", "reversible chain"):
        ratio(chain, "one step", "megabytes", 1.05)
        ratio(chain, "naive chain", "seconds", 1.3)
    print()
    medians(["one step", "chain", "reversible chain"], long, FEW, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
