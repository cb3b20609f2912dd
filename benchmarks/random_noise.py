"""Is noise prediction "just generating random noise"? What a trained network finds of the noise in z, against fresh noise.

usage: python benchmarks/random_noise.py RUN [--out FOLDER]

RUN was trained without labels. Per noise level, on held-out images: the share of the noise's variance that is found,
1 - E (noise - noise_hat)²: 1 is all of it, 0 is what predicting zero finds, -1 what fresh noise finds. Then images from the
same start, with the network's noise and with fresh noise in its place.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from usage import Parser, folder, guarded

from xhat import DDIM, NOISE, Denoiser, Schedule, rng, sample, uniform_times
from xhat.data.images import to_float, to_uint8
from xhat.data.load import load as load_data
from xhat.evaluation.denoising import reached, x0_errors
from xhat.evaluation.fid import distance, features_of
from xhat.evaluation.pictures import save_grid
from xhat.networks.digits import MNISTFeatures
from xhat.runs.load import load

SAMPLES, IMAGES, STEPS = 500, 500, 25


class FreshNoise(nn.Module):
    """A "network" that answers with noise of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = rng.generator("fresh")

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return torch.randn(z.shape, generator=self.generator)


def found(denoiser: Denoiser, x0: Tensor, levels: list[float]) -> list[float]:
    """1 - E (noise - noise_hat)² at each level; the error of the noise is SNR times that of x0."""
    errors = x0_errors(denoiser, x0, logsnr=levels).mean(1)
    return (1 - torch.tensor(levels, dtype=errors.dtype).exp() * errors).tolist()


def images(denoiser: Denoiser, schedule: Schedule) -> Tensor:
    """uint8 samples, all from the same start."""
    start = schedule.prior_std().detach().float() * rng.normal((SAMPLES, 1, 28, 28), 0, "sample")
    drawn = [sample(denoiser, DDIM(), part, uniform_times(schedule, STEPS)) for part in start.split(125)]
    return to_uint8(torch.cat(drawn))


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--out", type=folder, default=Path(), help="a folder that exists")
    options = parser.parse_args()
    trained = load(options.run).denoiser.cpu()
    schedule = trained.schedule
    models = {"network": trained, "fresh noise": Denoiser(FreshNoise(), schedule, NOISE)}
    held_out = load_data("mnist", None, "test").pixels
    levels = reached(schedule)
    shares = {name: found(model, to_float(held_out[:IMAGES]), levels) for name, model in models.items()}
    print(f"{'logsnr':>8}" + "".join(f"{name:>14}" for name in shares))
    for level, *values in zip(levels, *shares.values(), strict=True):
        print(f"{level:8.0f}" + "".join(f"{value:14.3f}" for value in values))
    network = MNISTFeatures.trained()
    real = features_of(network, held_out)
    for name, model in models.items():
        drawn = images(model, schedule)
        print(f"{name}: FID {distance(features_of(network, drawn), real, 'mnist').fid:.1f}")
        save_grid(drawn[:40], options.out / f"{name.replace(' ', '-')}.png", 10)


if __name__ == "__main__":
    guarded(main)
