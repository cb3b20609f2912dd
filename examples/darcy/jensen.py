"""Jensen's gap: where the residual of a posterior mean is not 0 although every sample's is, and how far a model is from it.

For each noise level the mean residual |div(k grad p) + f| of two pictures of clean fields:

- exact: (E[log k], E[p]) given log k with noise alone: in closed form for log k, a Gaussian field; p is a mean over solutions.
- model: x0_hat of a trained run, given both fields with noise.

    python jensen.py RUN
"""

import sys
from pathlib import Path

import numpy as np
import torch
from parts import darcy_error
from solve import covariance, pressure, source

import xhat
from xhat.sources import fields

LEVELS, FIELDS, SAMPLES = (-8, -6, -4, -2, 0, 2, 4, 6, 8), 8, 16


def exact(logsnr: float, seed: int = 0) -> float:
    """Of fields of their own, in units of the deviation of log k, 1."""
    values, modes = covariance()
    draw, f = np.random.default_rng(seed), source()
    alpha2 = 1 / (1 + np.exp(-logsnr))
    gain = alpha2 * values / (alpha2 * values + 1 - alpha2)  # of a mode: what is known of it
    found = []
    for _ in range(FIELDS):
        truth = np.sqrt(values) * draw.normal(size=values.shape)
        noisy = np.sqrt(alpha2) * truth + np.sqrt(1 - alpha2) * draw.normal(size=values.shape)
        mean = gain * noisy / np.sqrt(alpha2)
        spread = np.sqrt(values * (1 - gain))
        side = f.shape[0]
        logs = [(modes @ (mean + spread * draw.normal(size=values.shape))).reshape(side, side) for _ in range(SAMPLES)]
        p = np.mean([pressure(np.exp(log_k), f) for log_k in logs], axis=0)
        found.append(np.stack([(modes @ mean).reshape(side, side), p]))
    return float(darcy_error(torch.from_numpy(np.stack(found))).mean())


@torch.no_grad()
def model(run, x0: torch.Tensor, logsnr: float) -> float:
    """Of the run's own fields."""
    denoiser = run.denoiser
    t = denoiser.schedule.t_of(torch.full((len(x0),), float(logsnr), dtype=torch.float64)).float()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (f(t).float().reshape(-1, 1, 1, 1) for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    return float(darcy_error(denoiser.units(denoiser(alpha * x0 + sigma * noise, t).x0)).mean())


def main() -> None:
    run = xhat.load(sys.argv[1])
    folder = Path("runs/darcy-data")
    data = fields(str(folder / "log_permeability.npy"), str(folder / "pressure.npy"))
    x0 = data.get(0, xhat.Shard(0, 32), 32).x0
    print(f"residual of data {float(darcy_error(run.denoiser.units(x0)).mean()):.2g}")
    print("logsnr   exact   model")
    for level in LEVELS:
        print(f"{level:6d}  {exact(level):6.3g}  {model(run, x0, level):6.3g}")


if __name__ == "__main__":
    main()
