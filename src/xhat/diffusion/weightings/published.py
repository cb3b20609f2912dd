"""The published loss weightings over noise levels, each for the space that its paper writes its loss in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import NOISE, X0, Target
from xhat.diffusion.weightings.base import NO_SIGNAL, written_for
from xhat.registry import WEIGHTINGS

__all__ = ["clipped_velocity", "constant", "debiased", "edm_weight", "elbo", "min_snr", "p2", "sigmoid", "truncated_snr"]


@WEIGHTINGS.register
def constant(logsnr: Tensor, schedule: Schedule) -> Tensor:
    """1 everywhere, in any space."""
    return torch.ones_like(logsnr)


@WEIGHTINGS.register
@written_for(NOISE)
def elbo(logsnr: Tensor, schedule: Schedule) -> Tensor:
    """-½ d logsnr/dt, for the noise loss: the variational bound in nats per pixel.

    L = ½ E_t[(-d logsnr/dt) ‖noise - noise_hat‖²] (Kingma et al. 2021, VDM, eq. 17; w = 1 in Kingma & Gao 2023, eq. 3).
    On a discrete schedule this is the continuous limit; the T-step bound itself weighs its first few steps more.
    """
    wide = logsnr.to(torch.float64).clamp(min=NO_SIGNAL)
    return -0.5 * schedule.dlogsnr(schedule.t_of(wide)).to(logsnr.dtype)


@WEIGHTINGS.register
@dataclass(frozen=True)
class sigmoid:
    """elbo · sigmoid(bias - logsnr), for the noise loss (Kingma & Gao 2023, table 2; Hoogeboom et al. 2024, SiD2, eq. 5)."""

    bias: float = 0.0
    space = NOISE  # without an annotation: no argument of the constructor

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return elbo(logsnr, schedule) * torch.sigmoid(self.bias - logsnr)


@WEIGHTINGS.register
@dataclass(frozen=True)
class min_snr:
    """min(SNR, gamma), for the x0 loss (Hang et al. 2023, eq. 7). For noise it becomes min(1, gamma/SNR)."""

    gamma: float = 5.0
    space = X0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"min_snr needs gamma > 0, got {self.gamma}")

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return logsnr.exp().clamp(max=self.gamma)


@WEIGHTINGS.register
@written_for(X0)
def truncated_snr(logsnr: Tensor, schedule: Schedule) -> Tensor:
    """max(SNR, 1), for the x0 loss (Salimans & Ho 2022, section 4)."""
    return logsnr.exp().clamp(min=1.0)


@WEIGHTINGS.register
@dataclass(frozen=True)
class p2:
    """1/(k + SNR)^gamma, for the noise loss (Choi et al. 2022, eq. 8: there divided into the weights of the simple loss)."""

    gamma: float = 1.0
    k: float = 1.0
    space = NOISE

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return (self.k + logsnr.exp()) ** -self.gamma


@WEIGHTINGS.register
@written_for(NOISE)
def debiased(logsnr: Tensor, schedule: Schedule) -> Tensor:
    """1/sqrt(SNR), for the noise loss (Yu et al. 2023, Debias the training of diffusion models)."""
    return torch.exp(-logsnr.clamp(min=NO_SIGNAL) / 2)


@WEIGHTINGS.register
@dataclass(frozen=True)
class edm_weight:
    """(sigma² + sigma_data²)/(sigma sigma_data)² = SNR + 1/sigma_data², sigma² = 1/SNR, for the x0 loss (EDM).

    Karras et al. 2022, table 1.

    Args:
        target: `edm(sigma_data)`, whose sigma_data this reads: one owner of the number.

    Raises:
        ValueError: the target has no sigma_data.
    """

    target: Target
    space = X0

    def __post_init__(self) -> None:
        if self.target.sigma_data is None:
            raise ValueError(f"edm_weight reads sigma_data from an edm target; {self.target.name} has none")

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        assert self.target.sigma_data is not None
        return logsnr.exp() + 1 / self.target.sigma_data**2


@WEIGHTINGS.register
@dataclass(frozen=True)
class clipped_velocity:
    """1/max(sigma, floor)², the straight path's sigma = 1/(1 + sqrt(SNR)), for the x0 loss: JiT's velocity loss (Li & He 2025).

    On the straight path ‖v - v_hat‖² = ‖x0 - x0_hat‖²/sigma²; JiT clips the division near the data.
    """

    floor: float = 0.05
    space = X0

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(-logsnr / 2).clamp(min=self.floor) ** -2
