"""Digits of a peer's own recipe after so many seconds: what benchmarks/time_to_quality.py judges beside ours.

usage: python benchmarks/peer_quality.py LIBRARY FILE.npz [--seconds 600] [--samples 2000] [--seed 0]

The network is the demo's, the data are the 60,000 digits that ship in xhat, everything else is the library's: what its trainer
or its example does where nothing is said. The seconds count training steps alone. FILE.npz holds the images as `xhat sample`
writes them, and how many steps they took to train.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peer_losses import Called
from peers import import_torchvision
from torch import Tensor, nn
from usage import Parser, count, guarded

from xhat.data.images import to_float
from xhat.data.load import load
from xhat.errors import XhatError
from xhat.networks.unet import UNet

SIZE, CHUNK = 28, 250
Step = Callable[[Tensor, Tensor], None]
Sampler = Callable[[int], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a library trains and draws.

    Attributes:
        batch: images in a step.
        step: trains on a batch x0 (B, 1, 28, 28) in [-1, 1] and its labels (B,).
        draw: so many images in [-1, 1].
    """

    batch: int
    step: Step
    draw: Sampler


def denoising_diffusion_pytorch() -> Recipe:
    """Its `Trainer` as it comes (batch 16, Adam at 1e-4, EMA of 0.995 every 10 steps) and 250 DDIM steps, as in its README."""
    from denoising_diffusion_pytorch import GaussianDiffusion  # type: ignore[import-not-found]
    from ema_pytorch import EMA  # type: ignore[import-not-found]

    model = Called(UNet(size=SIZE), lambda net, x, t, _: net(x, t / 1000), channels=1, out_dim=1, self_condition=False)
    diffusion = GaussianDiffusion(model, image_size=SIZE, timesteps=1000, sampling_timesteps=250)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)

    def step(x0: Tensor, labels: Tensor) -> None:
        diffusion((x0 + 1) / 2).backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return Recipe(16, step, lambda n: 2 * ema.ema_model.sample(batch_size=n) - 1)


def torchcfm() -> Recipe:
    """Its conditional MNIST example: batch 128, Adam as it comes, told the digit; 100 steps of Euler's method."""
    from torchcfm import ConditionalFlowMatcher  # type: ignore[import-not-found]

    net = UNet(size=SIZE, classes=10)
    optimizer, matcher = torch.optim.Adam(net.parameters()), ConditionalFlowMatcher(sigma=0.0)

    def step(x0: Tensor, labels: Tensor) -> None:
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x0), x0)
        torch.mean((net(xt, t, labels) - ut) ** 2).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        z, labels = torch.randn(n, 1, SIZE, SIZE), torch.arange(n) % 10
        for i in range(100):
            z = z + net(z, torch.full((n,), i / 100), labels) / 100
        return z

    return Recipe(128, step, draw)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    "torchcfm": torchcfm,
}


def trained(recipe: Recipe, seconds: int) -> int:
    """Train for so many seconds; the steps that were made."""
    data = load("mnist")
    pixels, labels = torch.as_tensor(data.pixels[:]), torch.as_tensor(data.labels)
    end, steps, order = time.perf_counter() + seconds, 0, torch.randperm(len(pixels))
    while time.perf_counter() < end:
        if len(order) < recipe.batch:
            order = torch.randperm(len(pixels))
        rows, order = order[: recipe.batch], order[recipe.batch :]
        recipe.step(to_float(pixels[rows]), labels[rows])
        steps += 1
    return steps


def main() -> None:
    """Train, draw, write."""
    parser = Parser(description="digits of a peer's own recipe after so many seconds")
    parser.add_argument("library", choices=list(RECIPES))
    parser.add_argument("file", type=Path, help="the .npz that the images go to")
    parser.add_argument("--seconds", type=count, default=600, help="of training")
    parser.add_argument("--samples", type=count, default=2000, help="images")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and noise")
    options: argparse.Namespace = parser.parse_args()
    options.file.touch()  # so that a wrong name is said before the minutes of training
    options.file.unlink()
    torch.manual_seed(options.seed)
    try:
        import_torchvision()
        recipe = RECIPES[options.library]()
    except ModuleNotFoundError as error:
        raise XhatError(f"{error.name} is not installed: make bench installs it") from None
    steps = trained(recipe, options.seconds)
    images = torch.cat([recipe.draw(min(CHUNK, options.samples - n)) for n in range(0, options.samples, CHUNK)])
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    np.savez_compressed(options.file, images=levels.numpy(), steps=steps)
    print(f"{options.library}: {steps} steps of {recipe.batch} images in {options.seconds} s")


if __name__ == "__main__":
    guarded(main)
