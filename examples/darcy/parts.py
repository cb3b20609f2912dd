"""What a run on Darcy flow needs beside xhat: how far fields (log k, p) are from the equation, and a sampler that mends them.

xhat train ... --use parts.py
"""

from dataclasses import dataclass

import torch
from solve import RATE, source
from torch import Tensor

import xhat


def residual(fields: Tensor) -> Tensor:
    """div(k grad p) + f in each cell, (B, side, side), of (log k, p) as `solve.py` writes them: 0 to rounding for its own."""
    log_k, p = fields.unbind(1)
    side = p.shape[-1]
    total = torch.as_tensor(source(side), dtype=p.dtype, device=p.device).expand_as(p)
    for axis in (1, 2):
        a, b = (x.narrow(axis, 0, side - 1) for x in (log_k, p))
        c, d = (x.narrow(axis, 1, side - 1) for x in (log_k, p))
        face = 2 * torch.exp(-torch.logaddexp(-a, -c)) * side**2  # the harmonic mean of k: 2 / (1/k + 1/k')
        flow = face * (d - b)  # from the second cell of each pair into the first
        zero = torch.zeros_like(p.narrow(axis, 0, 1))
        total = total + torch.cat([flow, zero], axis) - torch.cat([zero, flow], axis)
    return total


@xhat.register.penalty
def darcy(fields: Tensor) -> Tensor:
    """Mean square of the residual, over the largest source's."""
    return (residual(fields) / RATE).square().mean((1, 2))


@xhat.register.penalty
def darcy_error(fields: Tensor) -> Tensor:
    """Mean absolute residual, in the units of the source, as it is quoted in the literature."""
    return residual(fields).abs().mean((1, 2))


@xhat.register
@dataclass(frozen=True)
class Mended(xhat.DDIM):
    """DDIM whose x0_hat is mended before each step, by Polyak's rule down `darcy`; no network call more.

    x0 <- x0 - penalty / |gradient|² gradient, the step that ends at 0 if the penalty were linear. Jacobsen et al. 2023, CoCoGen
    (arXiv:2312.10527), mend samples in a similar way, with a rate of their own.

    Args:
        times: steps down.
        above: logsnr from which on they are taken: at more noise x0_hat is a mean of fields, which solves no equation.
    """

    times: int = 5
    above: float = 3.0

    def _step(self, model, z, t, s):
        p = model(z, t)
        mended = self._down(model.denoiser, p.x0.detach())
        low = (model.schedule.logsnr(t) > self.above).reshape(-1, *[1] * (z.ndim - 1))
        x0 = torch.where(low, mended, p.x0)
        alpha, sigma = (f(s).to(z).reshape(low.shape) for f in (model.schedule.alpha, model.schedule.sigma))
        return alpha * x0 + sigma * p.noise, torch.zeros_like(sigma)

    def _down(self, denoiser, x0):
        for _ in range(self.times):
            with torch.enable_grad():
                x = x0.requires_grad_()
                penalty = darcy(x if denoiser.units is None else denoiser.units(x))
                (gradient,) = torch.autograd.grad(penalty.sum(), x)
            size = gradient.square().flatten(1).sum(1)
            x0 = (x - (penalty / size.clamp(min=1e-30)).reshape(-1, 1, 1, 1) * gradient).detach()
        return x0
