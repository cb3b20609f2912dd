"""Weightings: functions of logsnr (B,) -> weight (B,). They say what is learned; time samplers only say where samples go.

A weighting is written for the space that its paper writes its loss in, named by `space`; `Denoising` multiplies it into
the loss as it stands. `moved` takes it to another space by the one factor of the linear map.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import NOISE, X0, Target
from xhat.diffusion.times import TimeSampler
from xhat.registry import WEIGHTINGS

Weighting = Callable[[Tensor], Tensor]

NO_SIGNAL = -40.0
"""Below this logsnr a weight is its value here: at alpha = 0 infinite weights meet errors that are 0, and the limit is 0."""


class ScheduleWeighting(Protocol):
    """A weighting that needs to know the schedule; `on(schedule)` is the plain function of logsnr."""

    def on(self, schedule: Schedule) -> Weighting: ...


def on_schedule(weight: Weighting | ScheduleWeighting, schedule: Schedule) -> Weighting:
    """The plain function of logsnr behind either kind of weighting."""
    return weight.on(schedule) if hasattr(weight, "on") else weight


def space_of(weight: object) -> Target | None:
    """The space a weighting is written for; None if it says nothing."""
    return getattr(weight, "space", None)


@dataclass(frozen=True)
class Constant:
    """1 everywhere, in any space."""

    def __call__(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma), for the x0 loss (Hang et al. 2023, eq. 7). For noise it becomes min(1, gamma/SNR)."""

    gamma: float = 5.0
    space = X0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"min_snr needs gamma > 0, got {self.gamma}")

    def __call__(self, logsnr: Tensor) -> Tensor:
        return logsnr.exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, 1), for the x0 loss (Salimans & Ho 2022, section 4)."""

    space = X0

    def __call__(self, logsnr: Tensor) -> Tensor:
        return logsnr.exp().clamp(min=1.0)


@dataclass(frozen=True)
class P2:
    """1/(k + SNR)^gamma, for the noise loss (Choi et al. 2022, eq. 8, whose numerator is that of the simple loss)."""

    gamma: float = 1.0
    k: float = 1.0
    space = NOISE

    def __call__(self, logsnr: Tensor) -> Tensor:
        return (self.k + logsnr.exp()) ** -self.gamma


@dataclass(frozen=True)
class Debiased:
    """1/sqrt(SNR), for the noise loss (Yu et al. 2023, Debias the training of diffusion models)."""

    space = NOISE

    def __call__(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-logsnr.clamp(min=NO_SIGNAL) / 2)


@dataclass(frozen=True)
class EDM:
    """(sigma² + sigma_data²)/(sigma sigma_data)², sigma² = 1/SNR, for the x0 loss (Karras et al. 2022, table 1)."""

    sigma_data: float
    space = X0

    def __call__(self, logsnr: Tensor) -> Tensor:
        return logsnr.exp() + 1 / self.sigma_data**2


@dataclass(frozen=True)
class ClippedVelocity:
    """1/max(sigma, floor)² with sigma = 1/(1 + sqrt(SNR)), for the x0 loss: JiT's velocity loss (Li & He 2025).

    On the straight path ‖v - v_hat‖² = ‖x0 - x0_hat‖²/sigma²; JiT clips the division near the data.
    """

    floor: float = 0.05
    space = X0

    def __call__(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2).clamp(min=self.floor) ** -2


@dataclass(frozen=True)
class BoundWeighting:
    """relative(logsnr) · (-½ d logsnr/dt), for the noise loss: `relative` = 1 is the variational bound, nats per pixel.

    L = ½ E_t[(-d logsnr/dt) w(logsnr) ‖noise - noise_hat‖²] (Kingma & Gao 2023, eq. 3); VDM's continuous bound at w = 1.
    On a discrete schedule this is the continuous limit; the T-step bound itself weighs its first few steps more.
    """

    relative: Weighting = Constant()
    space = NOISE

    def on(self, schedule: Schedule) -> Weighting:
        def weight(logsnr: Tensor) -> Tensor:
            wide = logsnr.to(torch.float64).clamp(min=NO_SIGNAL)
            return -0.5 * schedule.dlogsnr(schedule.t_of(wide)).to(logsnr.dtype) * self.relative(logsnr)

        return weight

    def __call__(self, logsnr: Tensor) -> Tensor:
        """The weight relative to the bound, which needs no schedule."""
        return self.relative(logsnr)


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - logsnr) relative to the bound (Kingma & Gao 2023, table 2; Hoogeboom et al. 2024, SiD2, eq. 5).

    Called with logsnr alone it is that relative weight; on a schedule it is the weight of the noise loss.
    """

    bias: float = 0.0
    space = NOISE

    def on(self, schedule: Schedule) -> Weighting:
        return BoundWeighting(self).on(schedule)

    def __call__(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - logsnr)


@dataclass(frozen=True)
class FromDensity:
    """The density of a time sampler relative to the uniform one, as a weight: for papers whose density is the weighting.

    EDM's log-normal and SD3's logit-normal draw unevenly and correct nothing: their loss is the uniform expectation of
    (density · loss). Written this way it no longer matters where the samples are drawn.
    """

    times: TimeSampler

    def on(self, schedule: Schedule) -> Weighting:
        self.times.bind(schedule)
        return lambda logsnr: self.times.relative_density(schedule.t_of(logsnr))

    def __call__(self, logsnr: Tensor) -> Tensor:
        schedule = self.times.schedule
        if schedule is None:
            raise ValueError("from_density needs the schedule: call it as from_density(times).on(schedule)(logsnr)")
        return self.on(schedule)(logsnr)


class Product(nn.Module):
    """The product of weightings."""

    def __init__(self, *factors: Weighting | ScheduleWeighting) -> None:
        super().__init__()
        refuse_learned(*factors)
        self.factors = factors
        self.modules_of_factors = nn.ModuleList(f for f in factors if isinstance(f, nn.Module))
        spaces = {s.name: s for s in map(space_of, factors) if s is not None}
        if len(spaces) > 1:
            raise ValueError(f"weightings for different spaces ({', '.join(spaces)}) do not multiply: move one first")
        self.space = next(iter(spaces.values()), None)

    def on(self, schedule: Schedule) -> Weighting:
        parts = [on_schedule(f, schedule) for f in self.factors]

        def weight(logsnr: Tensor) -> Tensor:
            total = torch.ones_like(logsnr)
            for part in parts:
                total = total * part(logsnr)
            return total

        return weight


class LearnedUncertainty(nn.Module):
    """EDM2's learned uncertainty: outer · (base · exp(-u(logsnr)) · error + u(logsnr)) (Karras et al. 2024, eq. 14-15).

    u is a linear map of random Fourier features of c_noise = -logsnr/8, zero at first. At the optimum exp(u) is the mean
    of base · error at each noise level, so that every level contributes as `outer` says; EDM2's is its density of noise.

    Args:
        base: the weighting that is balanced.
        outer: weighs the balanced loss and u alike, for example from_density(log_normal_sigma(-0.4, 1)).
        features: number of Fourier features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(
        self,
        base: Weighting | ScheduleWeighting | None = None,
        outer: Weighting | ScheduleWeighting | None = None,
        features: int = 128,
    ) -> None:
        super().__init__()
        self.base, self.outer = base or constant, outer or constant
        own = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * torch.pi * torch.randn(features, generator=own))
        self.register_buffer("phases", 2 * torch.pi * torch.rand(features, generator=own))
        self.gains = nn.Parameter(torch.zeros(features))
        self.space = space_of(base)

    def offset(self, logsnr: Tensor) -> Tensor:
        """u(logsnr), (B,)."""
        angles = (-logsnr / 8).unsqueeze(-1) * self.frequencies + self.phases
        return (angles.cos() * self.gains).sum(-1) * math.sqrt(2 / self.gains.numel())

    def on(self, schedule: Schedule) -> Weighting:
        base, outer = on_schedule(self.base, schedule), on_schedule(self.outer, schedule)
        return lambda logsnr: outer(logsnr) * base(logsnr) * torch.exp(-self.offset(logsnr))

    def offset_on(self, schedule: Schedule) -> Weighting:
        """The summand outer · u of the loss, as a function of logsnr."""
        outer = on_schedule(self.outer, schedule)
        return lambda logsnr: outer(logsnr) * self.offset(logsnr)


def refuse_learned(*weights: object) -> None:
    """A learned uncertainty has an offset that must reach the loss, so that nothing may be wrapped around it.

    Raises:
        ValueError: one of the weights is a LearnedUncertainty.
    """
    if any(isinstance(w, LearnedUncertainty) for w in weights):
        raise ValueError("learned_uncertainty goes outermost, on a denoising loss: learned_uncertainty(base=...)")


def moved(weight: Weighting | ScheduleWeighting, source: Target, space: Target) -> "Moved":
    """The weighting of the `space` loss that makes it the same loss as `weight` makes of the `source` loss.

    ‖y - y_hat‖² = gain ‖x0 - x0_hat‖² in each space, so the new weight is weight · gain_source/gain_space. Example:
    moved(min_snr(5), X0, V) is min(SNR, 5)/(SNR + 1) on a variance-preserving schedule. Squared errors only.
    """
    refuse_learned(weight)
    return Moved(weight, source, space)


@dataclass(frozen=True)
class Moved:
    """See `moved`."""

    weight: Weighting | ScheduleWeighting
    source: Target
    space: Target

    def on(self, schedule: Schedule) -> Weighting:
        inner = on_schedule(self.weight, schedule)

        def weight(logsnr: Tensor) -> Tensor:
            logsnr = logsnr.clamp(min=NO_SIGNAL)
            return inner(logsnr) * self.source.gain_at(schedule, logsnr) / self.space.gain_at(schedule, logsnr)

        return weight


def edm(target: Target) -> EDM:
    """EDM's weighting with the sigma_data of the preconditioned target `targets.edm(sigma_data)`: one owner of the number.

    Raises:
        ValueError: the target has no sigma_data.
    """
    if target.sigma_data is None:
        raise ValueError(f"weightings.edm reads sigma_data from an edm target; {target.name} has none")
    return EDM(target.sigma_data)


constant = Constant()
elbo = BoundWeighting()
truncated_snr = TruncatedSNR()
debiased = Debiased()
min_snr = MinSNR
p2 = P2
sigmoid = Sigmoid
clipped_velocity = ClippedVelocity
from_density = FromDensity
product = Product
learned_uncertainty = LearnedUncertainty

for _name in ("constant", "elbo", "truncated_snr", "debiased", "min_snr", "p2", "sigmoid", "clipped_velocity", "from_density"):
    WEIGHTINGS.add(_name, globals()[_name])
for _name in ("product", "moved", "learned_uncertainty"):
    WEIGHTINGS.add(_name, globals()[_name])
WEIGHTINGS.add("edm_weight", edm)

__all__ = [
    "Weighting",
    "clipped_velocity",
    "constant",
    "debiased",
    "edm",
    "elbo",
    "from_density",
    "learned_uncertainty",
    "min_snr",
    "moved",
    "on_schedule",
    "p2",
    "product",
    "sigmoid",
    "space_of",
    "truncated_snr",
]
