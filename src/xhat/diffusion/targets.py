"""What a network is asked to predict: y = a x0 + b noise, and the one linear map that undoes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.registry import TARGETS
from xhat.tensors import over_images

Coefficients = Callable[[Schedule, Tensor], tuple[Tensor, Tensor]]
"""(schedule, t (B,)) -> (a, b) of a target y = a x0 + b noise, (B,) each."""


@dataclass(frozen=True, repr=False)
class Target:
    """A network output or loss space y = a x0 + b noise; equal to another of the same values, as after a copy.

    Attributes:
        name: as in configs and reports.
        coefficients: (schedule, t (B,)) -> a (B,), b (B,).
        scale_input: (schedule, t (B,)) -> (B,), the factor on z that belongs to this target; None is 1.
        sigma_data: the data's standard deviation that the target was built with, for weightings that need the same.
        plain: whether a and b are alpha, sigma, their negatives or whole numbers, of which float32 loses no digits.
    """

    name: str
    coefficients: Coefficients
    scale_input: Callable[[Schedule, Tensor], Tensor] | None = None
    sigma_data: float | None = None
    plain: bool = False

    def __repr__(self) -> str:
        return self.name

    def of(self, schedule: Schedule, t: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
        """y = a x0 + b noise for images (B, ...) at times (B,)."""
        if self in (X0, NOISE):
            return x0 if self == X0 else noise
        narrow = self.plain and x0.dtype != torch.float64
        a, b = self.coefficients(schedule, t if narrow else t.to(torch.float64))
        return torch.addcmul(over_images(a, x0) * x0, over_images(b, x0), noise)

    def gain(self, schedule: Schedule, t: Tensor) -> Tensor:
        """(D/sigma)², D = alpha b - sigma a: ‖y - y_hat‖² = gain ‖x0 - x0_hat‖² at given z. Any shape; float64 inside.

        Written as (b alpha/sigma - a)², it is finite wherever the noise is not zero.
        """
        wide = t.to(torch.float64)
        a, b = self.coefficients(schedule, wide)
        return ((b * schedule.alpha(wide) / schedule.sigma(wide) - a) ** 2).to(t.dtype)

    def gain_at(self, schedule: Schedule, logsnr: Tensor) -> Tensor:
        """As `gain`, at a logsnr; alpha/sigma = exp(logsnr/2) keeps its digits where a time would be rounded to t = 1."""
        wide = logsnr.to(torch.float64)
        a, b = self.coefficients(schedule, schedule.t_of(wide))
        return ((b * torch.exp(wide / 2) - a) ** 2).to(logsnr.dtype)


def decode(target: Target, schedule: Schedule, z: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The clean image and the noise that the pair (z, y) implies, exactly.

    With D = alpha b - sigma a: x0 = (b z - sigma y)/D, noise = (alpha y - a z)/D.

    Args:
        target: what y is.
        schedule: the schedule that made z.
        z: noisy images (B, ...).
        t: their times (B,).
        y: values of the target (B, ...).

    Returns:
        x0 (B, ...) and noise (B, ...), with alpha x0 + sigma noise = z.
    """
    return decode_x0(target, schedule, z, t, y), decode_noise(target, schedule, z, t, y)


def decode_x0(target: Target, schedule: Schedule, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The first half of `decode`: x0 = (b z - sigma y)/D."""
    a, b, alpha, sigma = _coefficients(target, schedule, t)
    d = alpha * b - sigma * a
    return over_images(b / d, z) * z - over_images(sigma / d, z) * y


def decode_noise(target: Target, schedule: Schedule, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The second half of `decode`: noise = (alpha y - a z)/D."""
    a, b, alpha, sigma = _coefficients(target, schedule, t)
    d = alpha * b - sigma * a
    return over_images(alpha / d, z) * y - over_images(a / d, z) * z


def _coefficients(target: Target, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, alpha, sigma in float64: D may cancel (POSTERIOR_MEAN: 1 - SNR_t/SNR_s)."""
    wide = t.to(torch.float64)
    return *target.coefficients(schedule, wide), schedule.alpha(wide), schedule.sigma(wide)


def forward_step(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of the grid step s = t - 1/T -> t: alpha_t/alpha_s and the variance beta = sigma_t² - (alpha_t/alpha_s)² sigma_s².

    Raises:
        ValueError: the schedule is continuous and has no step.
    """
    if schedule.steps is None:
        raise ValueError(
            f"STEP_NOISE and POSTERIOR_MEAN speak of the step from t - 1/T to t; {type(schedule).__name__} is "
            "continuous: use a Discrete schedule, or another target"
        )
    wide = t.to(torch.float64)
    previous = wide - 1 / schedule.steps
    ratio = schedule.alpha(wide) / schedule.alpha(previous)
    beta = schedule.sigma(wide) ** 2 - ratio**2 * schedule.sigma(previous) ** 2
    return ratio.to(t.dtype), beta.to(t.dtype)


def _x0(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(t), torch.zeros_like(t)


def _noise(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), torch.ones_like(t)


def _flow(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return -torch.ones_like(t), torch.ones_like(t)


def _v(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return -schedule.sigma(t), schedule.alpha(t)


def _scaled_noise(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), schedule.sigma(t)


def _step_noise(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), forward_step(schedule, t)[1] / schedule.sigma(t)


def _posterior_mean(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    ratio, _ = forward_step(schedule, t)
    assert schedule.steps is not None
    previous = t.to(torch.float64) - 1 / schedule.steps
    s_alpha, s_sigma = schedule.alpha(previous).to(t.dtype), schedule.sigma(previous).to(t.dtype)
    return s_alpha, ratio * s_sigma**2 / schedule.sigma(t)


def _score(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), -1 / schedule.sigma(t)


X0 = Target("x0", _x0)
"""The clean image: y = x0."""

NOISE = Target("noise", _noise)
"""The unit-variance noise: y = noise (DDPM, Ho et al. 2020, eq. 14)."""

V = Target("v", _v, plain=True)
"""y = alpha noise - sigma x0 (Salimans & Ho 2022, appendix D)."""

SCALED_NOISE = Target("scaled_noise", _scaled_noise, plain=True)
"""All the noise that is actually in z: y = sigma noise."""

STEP_NOISE = Target("step_noise", _step_noise)
"""What is known of the noise added between t - 1/T and t: y = E[z_t - (alpha_t/alpha_s) z_s | z_t, x0] = beta_t/sigma_t noise.

The increment itself has the variance beta_t; given z and x0 the part beta_t sigma_s² (alpha_t/alpha_s)²/sigma_t² of it
stays random, and no network can predict it. Discrete schedules only.
"""

POSTERIOR_MEAN = Target("posterior_mean", _posterior_mean)
"""mu-tilde, the mean of q(z_s | z_t, x0), s = t - 1/T: y = alpha_s x0 + (alpha_t/alpha_s) sigma_s²/sigma_t noise.

DDPM, Ho et al. 2020, eq. 7, with z_t written as alpha_t x0 + sigma_t noise. Discrete schedules only.
"""

SCORE = Target("score", _score)
"""y = grad log q(z_t | x0) = -noise/sigma (Song et al. 2021)."""

FLOW = Target("flow", _flow, plain=True)
"""The velocity of the straight path from data to noise: y = noise - x0 (Liu et al. 2022, eq. 1, time reversed)."""


@dataclass(frozen=True)
class _UnitInput:
    """1/r, the factor that gives the input of EDM's network unit variance."""

    sigma_data: float

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return 1 / torch.sqrt((schedule.alpha(t) * self.sigma_data) ** 2 + schedule.sigma(t) ** 2)


@dataclass(frozen=True)
class _Preconditioned:
    """a and b of EDM's F."""

    sigma_data: float

    def __call__(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        per_r = _UnitInput(self.sigma_data)(schedule, t)
        return schedule.sigma(t) * per_r / self.sigma_data, -schedule.alpha(t) * self.sigma_data * per_r


def edm(sigma_data: float = 0.5) -> Target:
    """EDM's preconditioned network F (Karras et al. 2022, eq. 7 and table 1), for any schedule.

    With r² = alpha² sigma_data² + sigma²: x0_hat = (alpha sigma_data²/r²) z + (sigma sigma_data/r) F(z/r), so that
    F = (sigma x0/sigma_data - alpha sigma_data noise)/r. Input and output of the network have unit variance, and nothing
    is singular at any noise level. Under a variance-preserving schedule and sigma_data = 1 it is -V.

    Args:
        sigma_data: standard deviation of the data; the weighting `edm` reads it from here.
    """
    if sigma_data <= 0:
        raise ValueError(f"edm needs sigma_data > 0, got {sigma_data}")
    return Target(f"edm({sigma_data:g})", _Preconditioned(sigma_data), _UnitInput(sigma_data), sigma_data)


for _target in (X0, NOISE, V, SCALED_NOISE, STEP_NOISE, POSTERIOR_MEAN, SCORE, FLOW):
    TARGETS.add(_target.name.upper(), _target)
TARGETS.register(edm)
