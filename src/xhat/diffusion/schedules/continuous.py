"""Schedules in closed form: cosine, linear logsnr, the straight line, variance exploding."""

import math

import torch
from torch import Tensor

from xhat.diffusion.schedules.base import Schedule, require_falling
from xhat.registry import SCHEDULES

__all__ = ["VE", "Cosine", "Flow", "LinearLogSNR"]


@SCHEDULES.register
class Cosine(Schedule):
    """alpha = cos(pi u/2), sigma = sin(pi u/2), u linear in t between the ends set by the logsnr limits.

    logsnr = -2 log tan(pi u/2) (Nichol & Dhariwal 2021; in this form Hoogeboom et al. 2023, simple diffusion, eq. 3 and
    Kingma & Gao 2023, table 1). With logsnr_min = -inf the schedule ends at pure noise, alpha(1) = 0.

    Args:
        logsnr_min: logsnr at t = 1.
        logsnr_max: logsnr at t = 0.
    """

    def __init__(self, logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> None:
        super().__init__()
        require_falling(logsnr_max, logsnr_min)
        self.u_min = 2 / math.pi * math.atan(math.exp(-logsnr_max / 2))
        self.u_max = 2 / math.pi * math.atan2(1.0, math.exp(logsnr_min / 2))
        quarter = math.pi / 2
        self.speed = quarter * (self.u_max - self.u_min)
        self.to_noise = quarter * (1 - self.u_min)  # equal to the speed where u ends at 1, and alpha exactly at 0
        self.clean = -self.u_min / (self.u_max - self.u_min)  # the t of an infinite logsnr, at which sigma is exactly 0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self.to_noise - self.speed * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self.speed * (t - self.clean))

    def logsnr(self, t: Tensor) -> Tensor:
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def dlogsnr(self, t: Tensor) -> Tensor:
        return -math.pi * (self.u_max - self.u_min) / (self.alpha(t) * self.sigma(t))

    def t_of(self, logsnr: Tensor) -> Tensor:
        u = 2 / math.pi * torch.atan(torch.exp(-logsnr / 2))
        return (u - self.u_min) / (self.u_max - self.u_min)


@SCHEDULES.named("linear_logsnr")
class LinearLogSNR(Schedule):
    """logsnr falls linearly from logsnr_max to logsnr_min, variance preserving.

    The defaults are VDM's initial values (Kingma et al. 2021, gamma from -13.3 to 5).
    """

    def __init__(self, logsnr_min: float = -5.0, logsnr_max: float = 13.3) -> None:
        super().__init__()
        require_falling(logsnr_max, logsnr_min)
        if math.isinf(logsnr_max - logsnr_min):
            raise ValueError("LinearLogSNR needs finite limits: logsnr_min and logsnr_max")
        self.logsnr_min, self.logsnr_max = logsnr_min, logsnr_max

    def logsnr(self, t: Tensor) -> Tensor:
        return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * t

    def dlogsnr(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.logsnr_min - self.logsnr_max)

    def t_of(self, logsnr: Tensor) -> Tensor:
        return (logsnr - self.logsnr_max) / (self.logsnr_min - self.logsnr_max)


@SCHEDULES.register
class Flow(Schedule):
    """The straight line of flow matching: alpha = 1 - u, sigma = u, u = shift t / (1 + (shift - 1) t).

    shift = 1 is rectified flow (Liu et al. 2022, eq. 1); shift > 1 spends more of t at high noise, for larger images
    (Esser et al. 2024, SD3, eq. 23). The shift lives here alone: time samplers and samplers never apply it again.

    Args:
        shift: sqrt(m/n) of SD3.
        t_min: lower end of the trained times, 1e-3 as in the rectified-flow code; 0 trains on the data itself.
    """

    def __init__(self, shift: float = 1.0, t_min: float = 1e-3) -> None:
        super().__init__()
        if shift <= 0:
            raise ValueError(f"Flow needs shift > 0, got {shift}")
        if not 0 <= t_min < 1:
            raise ValueError(f"Flow needs 0 <= t_min < 1, got {t_min}")
        self.shift, self.t_min = shift, t_min

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def logsnr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log() - math.log(self.shift))

    def dlogsnr(self, t: Tensor) -> Tensor:
        return -2 / (t * (1 - t))

    def t_of(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2 - math.log(self.shift))

    def rescale_zero_terminal(self) -> Schedule:
        return self  # alpha(1) = 0 already


@SCHEDULES.register
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t (Song et al. 2021, eq. 30).

    The defaults are EDM's range for images of standard deviation 0.5 (Karras et al. 2022, table 1).
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"VE needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.log_min, self.log_max = math.log(sigma_min), math.log(sigma_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_min + (self.log_max - self.log_min) * t)

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * (self.log_min + (self.log_max - self.log_min) * t)

    def dlogsnr(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -2 * (self.log_max - self.log_min))

    def t_of(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / 2 - self.log_min) / (self.log_max - self.log_min)

    def rescale_zero_terminal(self) -> Schedule:
        raise ValueError("VE keeps alpha = 1 and has no zero-terminal form: use Cosine, Discrete or Flow")
