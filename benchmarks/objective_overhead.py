"""What an objective costs on top of the network: python benchmarks/objective_overhead.py [ROUNDS]

A training step through `Objective` (draw, denoiser, loss, backward, update) against the same network's bare step: given z, t
and target, mean squared error, backward, update; and against a bare step that also draws its noise and mixes its z, as every
training loop must. The steps alternate in one process.
"""

import statistics
import time

import torch
from torch import Tensor
from usage import counts

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

    def update(z: Tensor, y: Tensor) -> None:
        (network(z, t) - y).square().mean().backward()
        bare.step()
        bare.zero_grad()

    def without() -> None:
        update(z, y)

    def without_but_drawing() -> None:
        noise, angle = torch.randn_like(x0), (torch.pi / 2 * torch.rand(BATCH)).reshape(-1, 1, 1, 1)
        alpha, sigma = angle.cos(), angle.sin()
        update(alpha * x0 + sigma * noise, alpha * noise - sigma * x0)

    steps = {"objective": with_objective, "bare": without, "bare, drawing its noise": without_but_drawing}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name in list(steps) if round_ % 2 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            if round_ >= 3:
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        pairs = statistics.median(a / b for a, b in zip(seconds["objective"], values, strict=True))
        print(f"{1e3 * statistics.median(values):7.1f} ms   objective is {pairs:.3f} x   {name}")


if __name__ == "__main__":
    main(*counts(rounds=60))
