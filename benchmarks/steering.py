"""Steps of steered samplers beside azula's, in float64: the same network, the same noise, the largest difference of any value.

    .venv-bench/bin/python benchmarks/steering.py

`make bench` makes that environment. PiGDM is compared by what its step adds to that of DDIM: azula adds alpha_s alpha_t J (J of
the paper's algorithm 1), we what the score of the measurement adds to a step of DDIM, (alpha_s/alpha_t - sigma_s/sigma_t)
sigma_t²/r² J, so that a step of half the size adds half as much.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from record import machine
from torch import Tensor
from usage import Parser, guarded

from xhat import DDIM, DDPM, X0, Denoiser, Flow
from xhat.errors import UsageError
from xhat.sampling.samplers import Sampler
from xhat.sampling.steering import DPS, MMPS, Blur, Hide, Linear, PiGDM, RePaint, Shrink, root

SIDE, NOISE, REPEATS = 12, 0.1, 3
ROOMS = ("denoise", "guidance", "linalg.covariance", "noise", "sample")
TIMES = ((0.9, 0.8), (0.5, 0.4), (0.1, 0.05))
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {"hide": Hide((3, 8), (2, 9)), "shrink": Shrink(3), "blur": Blur(1.0)}


class Network(torch.nn.Module):
    """Some function with a symmetric Jacobian, as an exact denoiser's is: conjugate gradients need it."""

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        inside: Tensor = torch.tanh((1 + t.reshape(-1, 1, 1, 1)) * _smooth(z))
        return _smooth(inside)


def _smooth(x: Tensor) -> Tensor:
    return (2 * x + x.roll(1, -1) + x.roll(-1, -1)) / 4


def main() -> None:
    Parser(prog="steering.py", description=__doc__.splitlines()[0]).parse_args()
    try:
        denoise, guidance, covariances, noise, sample = (import_module(f"azula.{room}") for room in ROOMS)
    except ImportError:
        raise UsageError("azula is not installed: make bench installs it, call this with .venv-bench/bin/python") from None
    network = Network()

    class Wrapped(denoise.Denoiser):  # type: ignore[name-defined]
        schedule = noise.RectifiedSchedule(0.0, 0.0)

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            return denoise.DiracPosterior(mean=network(x_t, t))

    theirs, ours = Wrapped(), Denoiser(network, Flow(t_min=1e-4), X0)
    print(f"{machine()}; azula's steps and ours, largest difference of values of size 1")
    draw = torch.Generator().manual_seed(0)
    z, image = (torch.randn(1, 1, SIDE, SIDE, dtype=torch.float64, generator=draw) for _ in range(2))

    def apart(own: Any, sampler: Sampler) -> float:
        worst = 0.0
        for number, goal in TIMES:
            t, s = (torch.tensor([v], dtype=torch.float64) for v in (number, goal))
            torch.manual_seed(1)
            reference = own.step(z, t[0], s[0])
            torch.manual_seed(1)
            fresh = [torch.randn_like(z) for _ in range(sampler.noises)]
            given = fresh[0] if len(fresh) == 1 else torch.stack(fresh)
            found, _ = sampler.step(ours.given(None), z, t, s, given, sampler.init(z))
            worst = max(worst, float((found - reference).abs().max()))
        return worst

    for name, operator in OPERATORS.items():
        y = operator(image)
        own = guidance.DPSSampler(theirs, y, operator, zeta=0.7, silent=True)
        found = apart(own, DPS(root(_twice(Linear(operator, y))), 0.7).around(DDPM()))
        print(f"DPS      {name:8} {found:.1e}")
        covariance = covariances.IsotropicCovariance(torch.tensor(NOISE**2, dtype=torch.float64))

        def flat(x: Tensor, operator: Callable[[Tensor], Tensor] = operator) -> Tensor:
            return operator(x).flatten(1)  # its solvers work along the last axis

        moved = guidance.MMPSDenoiser(theirs, y.flatten(1), flat, covariance, solver="cg", iterations=3)
        own = sample.DDIMSampler(moved, silent=True)
        found = apart(own, MMPS(Linear(operator, y, NOISE), 3).around(DDIM()))
        print(f"MMPS     {name:8} {found:.1e}")
    known = OPERATORS["hide"](torch.ones_like(z)).bool()
    own = guidance.RePaintSampler(theirs, image, known, iterations=REPEATS, eta=1.0, silent=True)
    found = apart(own, RePaint(image, OPERATORS["hide"], REPEATS).around(DDPM()))
    print(f"RePaint  {'hide':8} {found:.1e}")
    print(f"PiGDM    {'hide':8} {_pigdm(guidance.PGDMSampler, theirs, ours, z, image):.1e}")


def _twice(penalty: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """‖y - A x‖² of half of it."""
    return lambda images: 2 * penalty(images)


def _pigdm(sampler: Any, theirs: Any, ours: Denoiser, z: Tensor, image: Tensor) -> float:
    hide, worst = OPERATORS["hide"], 0.0
    own = sampler(theirs, hide(image), hide, lambda y: y, silent=True)
    for number, goal in TIMES:
        t, s = (torch.tensor([v], dtype=torch.float64) for v in (number, goal))
        alpha_t, alpha_s, sigma_t, sigma_s = 1 - number, 1 - goal, number, goal
        plain, _ = DDIM().step(ours.given(None), z, t, s, z, ())
        steered, _ = PiGDM(Linear(hide, hide(image))).around(DDIM()).step(ours.given(None), z, t, s, z, ())
        spread = sigma_t**2 / (alpha_t**2 + sigma_t**2)
        jacobian = (own.step(z, t[0], s[0]) - plain) / (alpha_s * alpha_t)
        ours_added = (alpha_s / alpha_t - sigma_s / sigma_t) * sigma_t**2 / spread * jacobian
        worst = max(worst, float((steered - plain - ours_added).abs().max()))
    return worst


if __name__ == "__main__":
    guarded(main)
