"""The likelihood of the probability-flow ODE: the instantaneous change of variables."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import rng
from xhat.bound.decoders import SHARP_LOGSNR
from xhat.bound.eight_bit import bin_index, log_normal_mass
from xhat.bound.exact import require_finite
from xhat.bound.terms import bits_per_dim
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.diffusion.gaussians import Gaussian
from xhat.diffusion.schedules import Schedule
from xhat.tensors import image_sum, over_images

LEVEL = 2 / 255  # distance of neighbouring 8-bit values


class Dequantization:
    """How 8-bit values become points of a density: z at the lowest time, and what to add to log p(z) for log P(x0).

    Attributes:
        name: for reports.
    """

    name: str

    @abstractmethod
    def start(self, x0: Tensor, alpha: Tensor, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """z (B, ...) and the summand in nats (B,), for alpha and sigma (B, 1, ...) at the lowest time."""


@dataclass(frozen=True)
class Uniform(Dequantization):
    """x0 + u, u uniform over the 8-bit bin: log P(x0) >= E log p(x0 + u) + log(bin) (Theis et al. 2016, section 3.1).

    The noise that the lowest time still has is read as data: right if it is small beside a bin. The tighter one for a network
    that does not resolve 8-bit levels.
    """

    name = "uniform"

    def start(self, x0: Tensor, alpha: Tensor, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        bin_index(x0)
        u = torch.rand(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype) - 0.5
        return alpha * (x0 + LEVEL * u), image_sum(torch.log(LEVEL * alpha).expand_as(x0))


@dataclass(frozen=True)
class TruncatedNormal(Dequantization):
    """alpha x0 + sigma noise, noise cut to the 8-bit bin: variational dequantization with what the network was trained on.

    log P(x0) >= E[log p(z) - log q(z | x0)] for any q within the bin (Ho et al. 2019, Flow++, eq. 12); this q is that of
    Zheng et al. 2023, Improved techniques for maximum likelihood estimation of diffusion ODEs. The tighter one for a network
    that was trained down to noise of a fraction of a level.
    """

    name = "variational, truncated normal"

    def start(self, x0: Tensor, alpha: Tensor, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        bin_index(x0)
        reach = (LEVEL / 2 * alpha / sigma).expand_as(x0)
        low = torch.special.ndtr(-reach)
        u = torch.rand(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        noise = torch.special.ndtri(low + u * (1 - 2 * low)).clamp(-reach, reach)
        log_q = -0.5 * noise**2 - 0.5 * math.log(2 * math.pi) - sigma.log() - log_normal_mass(-reach, reach)
        return alpha * x0 + sigma * noise, -image_sum(log_q)


@dataclass(frozen=True)
class AsDensity(Dequantization):
    """No bins: the log density of x0 itself, for latents and other floats.

    Attributes:
        volume: of a density that is wanted in other units, v(x0): x0 (B, ...) -> log |dv/dx0| in nats, (B,).
    """

    volume: Callable[[Tensor], Tensor] | None = None
    name = "none"

    def start(self, x0: Tensor, alpha: Tensor, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        found = image_sum(alpha.log().expand_as(x0))
        return alpha * x0, found if self.volume is None else found - self.volume(x0)


class Trace:
    """How the divergence of a velocity is computed."""

    @abstractmethod
    def probes(self, z: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Vectors v whose v·J v are added up, shaped like z, drawn once per image."""

    @property
    @abstractmethod
    def calls(self) -> int | None:
        """Number of probes; None if it is that of the pixels."""


@dataclass(frozen=True)
class Hutchinson(Trace):
    """E[v·J v] over random signs v: unbiased (Hutchinson 1990; Grathwohl et al. 2019, FFJORD, eq. 7)."""

    calls: int = 1

    def probes(self, z: Tensor, generator: torch.Generator) -> list[Tensor]:
        def signs() -> Tensor:
            return torch.randint(0, 2, z.shape, generator=generator, device=z.device).to(z.dtype) * 2 - 1

        return [signs() / math.sqrt(self.calls) for _ in range(self.calls)]


@dataclass(frozen=True)
class Exact(Trace):
    """The trace itself, one backward pass per pixel: for small images."""

    calls = None

    def probes(self, z: Tensor, generator: torch.Generator) -> list[Tensor]:
        unit = torch.eye(z[0].numel(), device=z.device, dtype=z.dtype)
        return [row.reshape(z[0].shape).expand_as(z) for row in unit]


@dataclass(frozen=True)
class OdeLikelihood:
    """-log2 P(x0) per dimension, or its bound under the dequantization.

    Attributes:
        bits_per_dim: (B,) float64.
        network_evaluations: of each image.
        dequantization: its name.
    """

    bits_per_dim: Tensor
    network_evaluations: int
    dequantization: str


def ode_likelihood(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    dequantization: Dequantization | None = None,
    trace: Trace | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    cond: Condition | None = None,
    seed: int = 0,
) -> OdeLikelihood:
    """Integrate dz/dphi = cos(phi) noise_hat - sin(phi) x0_hat up to pure noise, with the divergence along it.

    phi = atan(sigma/alpha), and z here is z_t / sqrt(alpha² + sigma²) = cos(phi) x0 + sin(phi) noise: in the angle the
    velocity is the v of Salimans & Ho 2022, bounded on every schedule, also where alpha or sigma reaches 0 with an infinite
    slope in t. log p(z_low) = log N(z_end; 0, 1) + ∫ div dphi (Song et al. 2021, eq. 39; Chen et al. 2018, eq. 8).
    Adaptive Dormand-Prince steps by torchdiffeq.

    Args:
        denoiser: the model.
        x0: images (B, C, H, W) in [-1, 1].
        dequantization: Uniform(), TruncatedNormal() or AsDensity(). By default both of the first two are measured, each a bound
            on the same likelihood, and the one with the smaller mean is returned, at twice the cost.
        trace: Hutchinson() by default, unbiased; Exact() for small images.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance.
        cond: keyword arguments of the network.
        seed: of dequantization and probes.

    Raises:
        ValueError: images without an 8-bit grid where one is needed, or a likelihood that is not finite.
    """
    chosen = (dequantization,) if dequantization is not None else (Uniform(), TruncatedNormal())
    found = [_measured(denoiser, x0, of, trace or Hutchinson(), rtol, atol, cond, seed) for of in chosen]
    return min(found, key=lambda likelihood: float(likelihood.bits_per_dim.mean()))


def _measured(
    denoiser: Denoiser,
    x0: Tensor,
    dequantization: Dequantization,
    trace: Trace,
    rtol: float,
    atol: float,
    cond: Condition | None,
    seed: int,
) -> OdeLikelihood:
    """`ode_likelihood` for one dequantization."""
    schedule, generator = denoiser.schedule, rng.generator(seed, "ode", device=x0.device)
    low = _lowest(schedule)
    alpha, sigma = (
        over_images(f(torch.full((len(x0),), low, device=x0.device).double()), x0.double())
        for f in (schedule.alpha, schedule.sigma)
    )
    if not bool((sigma.detach() > 0).all()):
        raise ValueError(f"the ODE starts at t = {low:g}, where {type(schedule).__name__} has no noise: set t_min > 0")
    z, summand = dequantization.start(x0.double(), alpha.detach(), sigma.detach(), generator)
    size = torch.hypot(alpha, sigma).detach()
    z, summand = z / size, summand - image_sum(size.log().expand_as(z))
    probes = trace.probes(z.to(x0.dtype), generator)
    calls = 0

    def rate(angle: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        angle = angle.clamp(*ends)  # a step may reach beyond the end, which is interpolated
        t = _time(schedule, angle).clamp(low, 1).expand(len(x0))
        size = over_images(torch.hypot(schedule.alpha(t), schedule.sigma(t)).detach(), x0)
        with torch.enable_grad():
            z = state[0].detach().to(x0.dtype).requires_grad_()
            prediction = denoiser(size.to(z.dtype) * z, t, cond)
            velocity = torch.cos(angle) * prediction.noise - torch.sin(angle) * prediction.x0
            if not bool(torch.isfinite(velocity).all()):
                raise ValueError(f"diffusion: the network's output is not finite at t = {float(t[0]):.4g}")
            divergence = torch.zeros(len(z), dtype=torch.float64, device=z.device)
            for i, v in enumerate(probes):
                (row,) = torch.autograd.grad(velocity, z, v, retain_graph=i + 1 < len(probes))
                divergence = divergence + image_sum((row * v).double())
        return velocity.detach().double(), divergence

    from torchdiffeq import odeint  # type: ignore[import-untyped]  # here: it imports scipy, and few ask for a likelihood

    ends = torch.stack([_angle(schedule, time, x0.device) for time in (low, 1.0)])
    start = (z, torch.zeros(len(z), dtype=torch.float64, device=z.device))
    try:
        path, gained = odeint(rate, start, ends, rtol=rtol, atol=atol, method="dopri5")
    except AssertionError:  # torchdiffeq's: the step became too small to change the angle
        raise ValueError("diffusion: the solver cannot follow the network's output, which is far too large or jumps") from None
    log_p = Gaussian(torch.zeros_like(z), torch.zeros_like(z)).log_prob(path[-1])
    bits = bits_per_dim(-(log_p + gained[-1] + summand), x0)
    require_finite(torch.zeros_like(bits), bits, torch.zeros_like(bits))
    return OdeLikelihood(bits, calls, dequantization.name)


def _lowest(schedule: Schedule) -> float:
    """The lowest trained time, but not above logsnr 14, where the noise is a ninth of an 8-bit level."""
    start = torch.tensor(schedule.t_min, dtype=torch.float64, device=schedule.device)
    if not float(schedule.logsnr(start).detach()) > SHARP_LOGSNR:
        return schedule.t_min
    return float(schedule.t_of(torch.full_like(start, SHARP_LOGSNR)).detach())


def _angle(schedule: Schedule, t: float, device: torch.device) -> Tensor:
    """atan(sigma/alpha) at t, a scalar, float64."""
    time = torch.tensor(t, dtype=torch.float64, device=device)
    return torch.atan2(schedule.sigma(time), schedule.alpha(time)).detach()


def _time(schedule: Schedule, angle: Tensor) -> Tensor:
    """The inverse of `_angle`."""
    return schedule.t_of(2 * (torch.cos(angle).log() - torch.sin(angle).log())).detach()
