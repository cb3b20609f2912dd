"""Diagonal Gaussians of the forward and the reverse process."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.tensors import image_sum, over_images


@dataclass(frozen=True)
class Gaussian:
    """N(mean, exp(log_variance)), independent pixels.

    Attributes:
        mean: (B, ...).
        log_variance: broadcastable to `mean`; -inf is a point mass.
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + exp(log_variance/2) noise, for standard normal `noise` shaped like `mean`."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats per image, (B,)."""
        scaled = (x - self.mean) ** 2 * torch.exp(-self.log_variance)
        return image_sum(-0.5 * (scaled + self.log_variance + math.log(2 * math.pi)))


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p ‖ q) in nats per image, summed over pixels, (B,).

    ½ (v_p/v_q - 1 - log(v_p/v_q) + (m_p - m_q)²/v_q). The first three terms go through expm1, so that nearly equal
    variances do not cancel, and no exponential of a log-variance larger than the ratio's is formed.
    """
    d = (p.log_variance - q.log_variance).expand_as(p.mean)
    # scaled before it is squared: a tiny variance must not overflow where the means agree
    distance = (p.mean - q.mean) * torch.exp(-0.5 * q.log_variance)
    return image_sum(0.5 * (torch.expm1(d) - d + distance**2))


@dataclass(frozen=True)
class Transition:
    """The exact Gaussian algebra between two times s <= t, float64, shapes as t.

    Attributes:
        alpha_ratio: alpha_t/alpha_s.
        forward_variance: sigma_t² - (alpha_t/alpha_s)² sigma_s², DDPM's beta_t.
        posterior_variance: forward_variance · sigma_s²/sigma_t², DDPM's beta-tilde_t (Ho et al. 2020, eq. 7).
        from_z: the weight of z_t in the mean of q(z_s | z_t, x0): (alpha_t/alpha_s) sigma_s²/sigma_t².
        from_x0: the weight of x0 there: alpha_s forward_variance/sigma_t².
    """

    alpha_ratio: Tensor
    forward_variance: Tensor
    posterior_variance: Tensor
    from_z: Tensor
    from_x0: Tensor


def transition(schedule: Schedule, t: Tensor, s: Tensor) -> Transition:
    """The transition between s and t > s; DDPM eq. 6-7 and VDM (Kingma et al. 2021) appendix A.2, for any schedule."""
    t, s = t.to(torch.float64), s.to(torch.float64)
    alpha_s, variance_t, variance_s = schedule.alpha(s), schedule.sigma(t) ** 2, schedule.sigma(s) ** 2
    ratio = schedule.alpha(t) / alpha_s
    # 1 - SNR_t/SNR_s through expm1: close steps lose no digits. At sigma_s = 0 the difference is -inf, the result 1.
    forward = -torch.expm1(schedule.logsnr(t) - schedule.logsnr(s)) * variance_t
    return Transition(
        alpha_ratio=ratio,
        forward_variance=forward,
        posterior_variance=forward * variance_s / variance_t,
        from_z=ratio * variance_s / variance_t,
        from_x0=alpha_s * forward / variance_t,
    )


def posterior(schedule: Schedule, x0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
    """q(z_s | z_t, x0) for images (B, ...) and times (B,); DDPM eq. 6-7."""
    step = transition(schedule, t, s)
    mean = over_images(step.from_z, z) * z + over_images(step.from_x0, z) * x0
    return Gaussian(mean, over_images(step.posterior_variance.log(), z))
