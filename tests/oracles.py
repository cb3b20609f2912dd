"""Data whose exact denoiser is known in closed form for every schedule, and the schedules and samplers that tests run over."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import xhat
from xhat.sampling.samplers import DDIM, DDPM, DPMSolver2M, Euler, Heun, Leapfrog
from xhat.tensors import over_images

SHAPE = (1, 2, 2)

SCHEDULES = {
    "cosine": lambda: xhat.Cosine(),
    "cosine_zero": lambda: xhat.Cosine(logsnr_min=-math.inf),
    "cosine_rescaled": lambda: xhat.Cosine(-8.0, 10.0).rescale_zero_terminal(),
    "linear_logsnr": lambda: xhat.schedules.LinearLogSNR(),
    "linear_logsnr_rescaled": lambda: xhat.schedules.LinearLogSNR().rescale_zero_terminal(),
    "flow": lambda: xhat.Flow(),
    "flow_shift3": lambda: xhat.Flow(shift=3.0),
    "ve": lambda: xhat.schedules.VE(),
    "learned": lambda: xhat.schedules.Learned(features=8).double(),
    "linear_beta": lambda: xhat.Discrete.linear_beta(100, 1e-3, 0.2),
    "cosine_beta": lambda: xhat.Discrete.cosine_beta(100),
    "discrete_rescaled": lambda: xhat.Discrete.linear_beta(100, 1e-3, 0.2).rescale_zero_terminal(),
}
PRESERVING = [name for name in SCHEDULES if name not in ("flow", "flow_shift3", "ve")]
ZERO_TERMINAL = ["cosine_zero", "cosine_rescaled", "linear_logsnr_rescaled", "flow", "flow_shift3", "discrete_rescaled"]
DISCRETE = ["linear_beta", "cosine_beta", "discrete_rescaled"]
CONTINUOUS = [name for name in SCHEDULES if name not in DISCRETE]

DETERMINISTIC = {"ddim": DDIM(), "euler": Euler(), "heun": Heun(), "2m": DPMSolver2M(), "leapfrog": Leapfrog()}
EVERY = DETERMINISTIC | {"ddpm": DDPM(), "ddim_eta": DDIM(eta=0.7)}

TARGETS = [
    xhat.X0,
    xhat.NOISE,
    xhat.V,
    xhat.targets.SCALED_NOISE,
    xhat.targets.SCORE,
    xhat.FLOW,
    xhat.targets.edm(0.5),
    xhat.targets.edm(1.0),
]
STEP_TARGETS = [xhat.targets.STEP_NOISE, xhat.targets.POSTERIOR_MEAN]


def inner_times(schedule: xhat.Schedule, n: int) -> Tensor:
    """n times strictly inside the trained range, (n,) float64: on the grid of a discrete schedule."""
    low = max(schedule.t_min, 1e-3)
    t = torch.linspace(low, 1, n + 2, dtype=torch.float64)[1:-1]
    return t if schedule.steps is None else (t * schedule.steps).round().clamp(1, schedule.steps - 1) / schedule.steps


def noisy(schedule: xhat.Schedule, t: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """alpha x0 + sigma noise."""
    return over_images(schedule.alpha(t), x0) * x0 + over_images(schedule.sigma(t), x0) * noise


@dataclass(frozen=True)
class GaussianData:
    """x0 ~ N(mean, std² I)."""

    mean: float = 0.3
    std: float = 0.5

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator)

    def x0_hat(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | z]; alpha and sigma broadcast to z."""
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (z - alpha * self.mean)

    def log_density(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log q(z) up to a constant, (B,)."""
        return (-0.5 * (z - alpha * self.mean) ** 2 / (alpha**2 * self.std**2 + sigma**2)).flatten(1).sum(1)

    def x0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E (x0 - E[x0 | z])² per pixel."""
        return self.std**2 * sigma**2 / (alpha**2 * self.std**2 + sigma**2)

    def spread(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Standard deviation of z."""
        return torch.sqrt(alpha**2 * self.std**2 + sigma**2)

    def flow_map(self, schedule: xhat.Schedule, z: Tensor, t: float, s: float) -> Tensor:
        """The probability-flow ODE's exact solution at s from z at t."""
        (alpha_t, alpha_s), (sigma_t, sigma_s) = (f(torch.tensor([t, s]).double()) for f in (schedule.alpha, schedule.sigma))
        ratio = self.spread(alpha_s, sigma_s) / self.spread(alpha_t, sigma_t)
        return alpha_s * self.mean + ratio * (z - alpha_t * self.mean)


@dataclass(frozen=True)
class MixtureData:
    """x0 ~ sum_k weight_k N(mean_k, std² I) over whole images."""

    std: float = 0.2
    weights: tuple[float, ...] = (0.2, 0.5, 0.3)

    @property
    def means(self) -> Tensor:
        own = torch.Generator().manual_seed(7)
        return torch.rand(len(self.weights), *SHAPE, dtype=torch.float64, generator=own) * 2 - 1

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        component = torch.multinomial(torch.tensor(self.weights), n, replacement=True, generator=generator)
        return self.means[component] + self.std * torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator)

    def _log_joint(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log weight_k N(z; alpha mean_k, v), v = alpha² std² + sigma², without the constant, (B, K)."""
        v = (alpha**2 * self.std**2 + sigma**2).unsqueeze(1)
        squares = (z.unsqueeze(1) - alpha.unsqueeze(1) * self.means) ** 2 / v + v.log()
        return torch.tensor(self.weights, dtype=z.dtype).log() - 0.5 * squares.flatten(2).sum(2)

    def x0_hat(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        share = self._log_joint(z, alpha, sigma).softmax(1).reshape(-1, len(self.weights), 1, 1, 1)
        gain = (alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)).unsqueeze(1)
        each = self.means + gain * (z.unsqueeze(1) - alpha.unsqueeze(1) * self.means)
        return (share * each).sum(1)

    def log_density(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._log_joint(z, alpha, sigma).logsumexp(1)


class OracleNet(nn.Module):
    """The network whose output is exactly E[y | z] of the given target: Denoiser(OracleNet(...), schedule, target) is exact."""

    def __init__(self, data: GaussianData | MixtureData, schedule: xhat.Schedule, target: xhat.Target) -> None:
        super().__init__()
        self.data, self.schedule, self.target = data, schedule, target

    def forward(self, scaled: Tensor, t: Tensor) -> Tensor:
        z = scaled
        if self.target.scale_input is not None:
            z = scaled / over_images(self.target.scale_input(self.schedule, t), scaled)
        alpha, sigma = over_images(self.schedule.alpha(t), z), over_images(self.schedule.sigma(t), z)
        x0 = self.data.x0_hat(z, alpha, sigma)
        return self.target.of(self.schedule, t, x0, (z - alpha * x0) / sigma)


def exact(data: GaussianData | MixtureData, schedule: xhat.Schedule, target: xhat.Target = xhat.V, **kwargs) -> xhat.Denoiser:
    """The exact denoiser of the data."""
    return xhat.Denoiser(OracleNet(data, schedule, target), schedule, target, **kwargs)


class ScaledX0(nn.Module):
    """A one-parameter network with x0_hat = scale·z + shift, written in any target: the same function in every space."""

    def __init__(self, schedule: xhat.Schedule, target: xhat.Target, scale: float = 0.7, shift: float = 0.1) -> None:
        super().__init__()
        self.schedule, self.target, self.shift = schedule, target, shift
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, scaled: Tensor, t: Tensor) -> Tensor:
        z = scaled
        if self.target.scale_input is not None:
            z = scaled / over_images(self.target.scale_input(self.schedule, t), scaled)
        alpha, sigma = over_images(self.schedule.alpha(t), z), over_images(self.schedule.sigma(t), z)
        x0 = self.scale * z + self.shift
        return self.target.of(self.schedule, t, x0, (z - alpha * x0) / sigma)


class Constant(nn.Module):
    """A network that returns one learned image, in whatever target; grad of it is the grad of the raw output."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.output.expand(z.shape[0], *self.output.shape[1:])


class Levels(nn.Module):
    """The exact denoiser of independent pixels that take few 8-bit levels, NOISE output."""

    def __init__(self, schedule, levels, chance):
        super().__init__()
        self.schedule, self.chance = schedule, chance
        self.values = torch.as_tensor(levels).double() * 2 / 255 - 1

    def forward(self, z, t):
        alpha, sigma = (f(t).reshape(-1, 1, 1, 1, 1) for f in (self.schedule.alpha, self.schedule.sigma))
        log = self.chance.log() - 0.5 * ((z.unsqueeze(-1) - alpha * self.values) / sigma) ** 2
        x0 = (log.softmax(-1) * self.values).sum(-1)
        return (z - alpha.squeeze(-1) * x0) / sigma.squeeze(-1)
