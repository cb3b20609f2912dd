"""What an objective costs on top of the network: python benchmarks/objective_overhead.py [ROUNDS]

A training step through `Objective` (draw, denoiser, loss, backward, update) against the same network's bare step: given z, t
and target, mean squared error, backward, update. Both steps alternate in one process; the ratio of the medians is the claim.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from xhat import Cosine, Denoiser, Denoising, Objective, Term, V
from xhat.networks.unet import UNet

BATCH = 128


def main(rounds: int) -> None:
    torch.manual_seed(0)
    objective = Objective(Denoiser(UNet(size=28), Cosine(), V), {"denoise": Term(Denoising(V))})
    network = UNet(size=28)
    ours = torch.optim.AdamW(objective.parameters(), fused=True)
    bare = torch.optim.AdamW(network.parameters(), fused=True)
    x0, z, y, t = torch.randn(BATCH, 1, 28, 28), *torch.randn(2, BATCH, 1, 28, 28), torch.rand(BATCH)
    state = {"step": 0}

    def with_objective() -> None:
        state["step"] += 1
        objective(x0, step=state["step"])["loss"].backward()
        ours.step()
        ours.zero_grad()

    def without() -> None:
        (network(z, t) - y).square().mean().backward()
        bare.step()
        bare.zero_grad()

    seconds: dict[Callable[[], None], list[float]] = {with_objective: [], without: []}
    for round_ in range(rounds + 3):
        for step in (with_objective, without) if round_ % 2 else (without, with_objective):
            start = time.perf_counter()
            step()
            if round_ >= 3:
                seconds[step].append(time.perf_counter() - start)
    a, b = statistics.median(seconds[with_objective]), statistics.median(seconds[without])
    pairs = statistics.median(x / y for x, y in zip(seconds[with_objective], seconds[without], strict=True))
    print(f"objective {1e3 * a:.1f} ms, bare {1e3 * b:.1f} ms, ratio of medians {a / b:.3f}, median of ratios {pairs:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
