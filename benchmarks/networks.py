"""Milliseconds of a training step of our networks beside diffusers' UNet2DModel: python benchmarks/networks.py [ROUNDS]

Batch 128, forward, backward and AdamW, all variants in turn in one process; medians, and ratios to the first.
"""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from usage import counts

from xhat.networks.dit import DiT
from xhat.networks.unet import UNet

BATCH = 128


class Peer(nn.Module):
    """diffusers' network at 32x32, as its examples pad MNIST."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet2DModel(32, 1, 1, block_out_channels=(32, 64, 64), down_block_types=("DownBlock2D",) * 3,
                               up_block_types=("UpBlock2D",) * 3, layers_per_block=2)  # fmt: skip

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(nn.functional.pad(z, (2, 2, 2, 2)), 1000 * t).sample[:, :, 2:-2, 2:-2]
        return out


def step_of(network: nn.Module, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    z, y, t = *torch.randn(2, BATCH, 1, 28, 28), torch.rand(BATCH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = network(z, t)
        (out - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(rounds: int) -> None:
    torch.manual_seed(0)
    compiled, compiled_dit = UNet(size=28), DiT()
    compiled.compile()
    compiled_dit.compile()
    variants = {
        "diffusers UNet2DModel (32, 64, 64) at 32x32, float32": (Peer(), False),
        "U-Net, float32": (UNet(size=28), False),
        "U-Net, bf16 body": (UNet(size=28), True),
        "U-Net, bf16 body, compiled": (compiled, True),
        "DiT patch 4, bf16 body": (DiT(), True),
        "DiT patch 4, bf16 body, compiled": (compiled_dit, True),
    }
    steps = {name: step_of(*made) for name, made in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        print(f"first step {time.perf_counter() - start:6.1f} s   {name}", flush=True)
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(seconds[next(iter(seconds))])
    for name, values in seconds.items():
        median = statistics.median(values)
        count = sum(p.numel() for p in variants[name][0].parameters()) / 1e6
        print(f"{1e3 * median:7.1f} ms   {reference / median:5.1f}x   {count:.2f} M parameters   {name}")


if __name__ == "__main__":
    main(*counts(rounds=9))
