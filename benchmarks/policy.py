"""How noisy the policy gradient is by each likelihood, at equal network calls, on a trained run.

    python benchmarks/policy.py runs/demo

The reward is the shipped network's certainty of a digit, of which the value alone is used. Each row is the gradient of
PolicyGradient in all weights, over so many batches of 32 samples, of 20 steps of DDPM, judged by 8 network calls with gradient
for each. "variance" is that of a batch's gradient, summed over all weights, beside that of the same bound drawn freely: times
and noises of its own for each image. "batches" is how many of them have as much signal as noise: the variance over the squared
norm of the mean gradient, from which the noise of that mean is taken; none where these batches are too few to see one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from record import machine
from torch import Tensor
from usage import Parser, count, guarded

import xhat
from xhat.diffusion.weightings import constant, elbo
from xhat.losses.penalties import minus, unreadable_digit
from xhat.losses.rewards import BoundLikelihood, Likelihood, PolicyGradient, StepLikelihood, Trajectory
from xhat.objective.draw import Draw
from xhat.runs.load import TrainedRun
from xhat.sampling.samplers import DDPM

BATCH, CALLS = 32, 8


@dataclass(frozen=True)
class Unpaired(BoundLikelihood):
    """The bound with times and noise of its own for each image, and no opposites: what is drawn elsewhere."""

    def __call__(self, denoiser: xhat.Denoiser, drawn: Trajectory, draw: Draw) -> Tensor:
        low, total = denoiser.schedule.t_min, torch.zeros_like(draw.t, dtype=torch.float64)
        own = torch.Generator().manual_seed(draw.step)
        for k in range(self.draws):
            t = low + (1 - low) * torch.rand(len(draw.t), generator=own).to(draw.t)
            total = total + self._again(denoiser, drawn.end, t, draw.normal("unpaired", k), draw)
        return -(1 - low) / self.draws * total[None]


@dataclass(frozen=True)
class Strata(BoundLikelihood):
    """The bound in strata, without opposites."""

    def __call__(self, denoiser: xhat.Denoiser, drawn: Trajectory, draw: Draw) -> Tensor:
        low, total = denoiser.schedule.t_min, torch.zeros_like(draw.t, dtype=torch.float64)
        offset = float(draw.uniform(1, "bound")[0])
        for k in range(self.draws):
            t = low + (1 - low) * (torch.full_like(draw.t, k + offset) / self.draws)
            total = total + self._again(denoiser, drawn.end, t, draw.normal("unpaired", k), draw)
        return -(1 - low) / self.draws * total[None]


class Alike(Draw):
    """A draw whose noise is the same for all of its images."""

    def normal(self, purpose: str, number: int = 0) -> Tensor:
        own = super().normal(purpose, number)
        return own[:1].expand_as(own)


@dataclass(frozen=True)
class Shared(BoundLikelihood):
    """The bound as it is, with the same noise for all images of a batch."""

    def __call__(self, denoiser: xhat.Denoiser, drawn: Trajectory, draw: Draw) -> Tensor:
        alike = Alike(**{each.name: getattr(draw, each.name) for each in fields(draw)})
        return super().__call__(denoiser, drawn, alike)


BOUNDS: dict[str, type[BoundLikelihood]] = {
    "drawn freely": Unpaired,
    "strata": Strata,
    "strata and opposites (ours)": BoundLikelihood,
    "the same noise for all, too": Shared,
}
WEIGHTINGS = {"bound": elbo, "unweighted bound": constant}


def main() -> None:
    parser = Parser(prog="policy.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run of digits, as xhat train mnist makes it")
    parser.add_argument("--batches", type=count, default=24, help="gradients of each")
    given = parser.parse_args()
    trained = xhat.load(given.run)
    trained.denoiser.requires_grad_(True)
    print(f"{machine()}; {given.batches} batches of {BATCH}, {CALLS} calls with gradient a sample")
    print(f"{'likelihood':46} {'variance':>10} {'batches':>9}")
    steps = noise_of(gradients(trained, StepLikelihood(CALLS), given.batches))
    print(f"{'8 steps of the chain':46} {'':>10} {steps.batches:9.0f}", flush=True)
    for weighting, weight in WEIGHTINGS.items():
        base = 0.0
        for name, bound in BOUNDS.items():
            found = noise_of(gradients(trained, bound(CALLS, weight), given.batches))
            base = base or found.variance
            print(f"{weighting + ', ' + name:46} {found.variance / base:10.3f} {found.batches:9.0f}", flush=True)


def gradients(trained: TrainedRun, likelihood: Likelihood, batches: int) -> Sequence[Tensor]:
    """Of all weights, one for each batch."""
    loss = PolicyGradient(minus(unreadable_digit), likelihood, xhat.FullChain(DDPM(), 20))
    objective = xhat.Objective(trained.denoiser, {"reward": xhat.Term(loss)}, seed=0)
    parameters, found = list(trained.denoiser.parameters()), []
    label = torch.arange(BATCH) % 10
    for step in range(batches):
        value = objective(shape=(BATCH, 1, 28, 28), cond={"label": label}, step=step)["loss"]
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    return found


@dataclass(frozen=True)
class Noise:
    """Of gradients.

    Attributes:
        variance: of one, summed over all weights.
        batches: the variance over the squared norm of their mean; infinite where that is not seen.
    """

    variance: float
    batches: float


def noise_of(found: Sequence[Tensor]) -> Noise:
    """The noise of a batch's gradient."""
    every = torch.stack(list(found)).double()
    variance = float((every - every.mean(0)).square().sum() / (len(every) - 1))
    signal = float(every.mean(0).square().sum()) - variance / len(every)
    return Noise(variance, variance / signal if signal > 0 else float("inf"))


if __name__ == "__main__":
    guarded(main)
