"""What a training objective costs on top of the network's own step, ours beside our peers': make bench

Each library computes its loss as its own documentation trains with it (peer_losses.py), on the same network, batch and
optimizer, in one process. In each round every one of them takes four steps one after the other, of which the last three count.
Two sizes are measured, unless --batch or --widths name one. The peers have an environment of their own, of requirements.txt.
"""

import json
import statistics
import time
from importlib import metadata
from pathlib import Path

import torch
from peer_losses import PEERS, contestants
from record import machine
from torch import Tensor, nn
from usage import Parser, count, guarded

import xhat
from xhat.errors import XhatError
from xhat.networks.unet import UNet

SIZES: list[tuple[int, tuple[int, ...]]] = [(32, (16, 32)), (160, (32, 64))]
"""Batch and widths: bare steps of some 20 and 150 ms on two cores, eager in float32."""
WARM_UP = 3
TURN = 4
"""Steps that a contestant takes one after the other, as in a training; the first, whose code the others have put out of the
caches, does not count."""

Seconds = dict[tuple[str, str], list[float]]
"""Of each step, by (variant, library); the bare step is the first."""


class Autocast(nn.Module):
    """A network in bf16, and nothing else: losses stay in float32, as under Accelerate."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16):
            out: Tensor = self.net(z, t)
        return out


def import_torchvision() -> None:
    """Two peers import torchvision for data sets and grids of pictures, which nothing here calls.

    Beside a torch for CPUs its compiled operators do not load, and its import ends where it describes two of them. With the
    signatures of these two, and no code behind them, all of its Python imports as it is.
    """
    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def measure(mode: str, batch: int, widths: tuple[int, ...], rounds: int) -> Seconds:
    """Seconds of each contestant's step, mean of its turn in each round. One network and one optimizer serve all of them."""
    torch.manual_seed(0)
    unet = UNet(size=28, widths=widths)
    if mode == "compiled":
        unet.compile(dynamic=False)
    net = Autocast(unet) if mode == "bf16" else unet
    losses = contestants(net, 2 * torch.rand(batch, 1, 28, 28) - 1)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    seconds: Seconds = {name: [] for name in losses}
    for round_ in range(rounds + WARM_UP):
        for name in list(losses) if round_ % 2 else reversed(losses):
            each = []
            for _ in range(TURN):
                start = time.perf_counter()
                losses[name]().backward()
                optimizer.step()
                optimizer.zero_grad()
                each.append(time.perf_counter() - start)
            if round_ >= WARM_UP:
                seconds[name].append(statistics.fmean(each[1:]))
    return seconds


def table(seconds: Seconds) -> str:
    """Medians, and how a step compares with the bare step of its round: median, 10th and 90th percentile."""
    lines, bare = [f"{'':48}{'ms':>8}{'x bare':>9}{'10 %':>8}{'90 %':>8}"], next(iter(seconds.values()))
    for (variant, library), values in seconds.items():
        ratios = [a / b for a, b in zip(values, bare, strict=True)]
        low, middle, high = torch.tensor(ratios).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
        times = f"{1e3 * statistics.median(values):8.1f}{middle:9.3f}{low:8.3f}{high:8.3f}"
        lines.append(f"{variant:18}{library:30}{times}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = Parser(description="what a training objective costs, ours beside our peers'")
    parser.add_argument("--rounds", type=count, default=20, help="turns of each contestant, beside three to warm up")
    parser.add_argument("--batch", type=count, help="images")
    parser.add_argument("--widths", type=count, nargs=2, help="channels at the two levels of the U-Net")
    parser.add_argument("--compiled", action="store_true", help="also with the network compiled")
    parser.add_argument("--bf16", action="store_true", help="also with the network in bf16 autocast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all seconds go")
    options = parser.parse_args()
    if options.json:
        options.json.touch()  # so that a wrong name is said before the minutes of measuring
    try:
        versions = {name: metadata.version(name) for name in ("torch", *PEERS)} | {"xhat": xhat.__version__}
        import_torchvision()
    except ModuleNotFoundError as error:
        raise XhatError(f"{error.name} is not installed: make bench installs it") from None
    print(f"{machine()}\n{', '.join(f'{name} {version}' for name, version in versions.items())}")
    one = (options.batch or SIZES[0][0], tuple(options.widths or SIZES[0][1]))
    measured = []
    for batch, widths in [one] if options.batch or options.widths else SIZES:
        for mode in ("eager", *("compiled",) * options.compiled, *("bf16",) * options.bf16):
            seconds = measure(mode, batch, widths, options.rounds)
            print(f"\n{mode}, {batch} images, widths {widths}\n{table(seconds)}", flush=True)
            named = {", ".join(name): values for name, values in seconds.items()}
            measured.append({"mode": mode, "batch": batch, "widths": widths, "seconds": named})
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "versions": versions, "measured": measured}))


if __name__ == "__main__":
    guarded(main)
