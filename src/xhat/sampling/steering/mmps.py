"""Moment matching posterior sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Conditioned, Prediction
from xhat.registry import STEERINGS
from xhat.sampling.steering.measurement import Linear, Measuring, conjugate_gradients
from xhat.tensors import over_images


@STEERINGS.register
@dataclass(frozen=True)
class MMPS(Measuring):
    """x0_hat + C Aᵀ (noise² + A C Aᵀ)⁻¹ (y - A x0_hat), C = sigma²/alpha (d x0_hat/dz)ᵀ, the covariance of p(x0 | z).

    Exact where x0 given z is Gaussian, for an exact denoiser: then all samples are of p(x0 | y) (Rozet et al. 2024, Learning
    diffusion priors from observations by expectation maximization, eq. 17 and 18). Each iteration takes a backward pass through
    the network, whose parameters get no gradient.

    Args:
        measurement: y and A.
        iterations: of conjugate gradients, at most; as many as A C Aᵀ has different eigenvalues are exact.
    """

    measurement: Linear
    iterations: int = 3

    def moved(self, model: Conditioned, z: Tensor, t: Tensor) -> tuple[Prediction, Tensor]:
        own, schedule = self.measurement, model.schedule
        alpha, sigma = schedule.alpha(t.double()), schedule.sigma(t.double())
        gamma = over_images((sigma**2 / alpha.clamp(min=1e-12)), z)
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            p = model(at, t)
            seen = own.operator(p.x0)

        def back(v: Tensor) -> Tensor:
            """(d x0_hat/dz)ᵀ Aᵀ v."""
            (found,) = torch.autograd.grad(seen, at, v, retain_graph=True)
            return found

        def covariance(v: Tensor) -> Tensor:
            return own.noise**2 * v + own.operator(gamma * back(v))

        rest = own.residual(seen.detach())
        return p, back(conjugate_gradients(covariance, rest, self.iterations, own.noise**2))
