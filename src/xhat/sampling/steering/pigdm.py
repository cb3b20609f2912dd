"""Pseudo-inverse guided diffusion."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Conditioned, Prediction
from xhat.registry import STEERINGS
from xhat.sampling.steering.measurement import Linear, Measuring, conjugate_gradients
from xhat.tensors import over_images


@STEERINGS.named("pigdm")
@dataclass(frozen=True)
class PiGDM(Measuring):
    """As `MMPS`, where the covariance of p(x0 | z) inside of the inverse is r², r² = sigma²/(alpha² + sigma²/std²).

    That is the variance of p(x0 | z) for independent pixels of variance std², so that for such data it is exact (Song et al.
    2023, Pseudoinverse-guided diffusion models for inverse problems, eq. 7 and appendix A.3). One backward pass through the
    network; A Aᵀ is inverted by conjugate gradients, which takes none.

    Args:
        measurement: y and A.
        std: of the data's pixels.
        iterations: of conjugate gradients, at most.
    """

    measurement: Linear
    std: float = 1.0
    iterations: int = 20

    def moved(self, model: Conditioned, z: Tensor, t: Tensor) -> tuple[Prediction, Tensor]:
        own, schedule = self.measurement, model.schedule
        alpha, sigma = schedule.alpha(t.double()), schedule.sigma(t.double())
        variance = over_images(sigma**2 / (alpha**2 + sigma**2 / self.std**2), z)
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            p = model(at, t)
            image = p.x0.detach().requires_grad_()
            seen = own.operator(image)

        def transposed(v: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(seen, image, v, retain_graph=True)
            return found

        def covariance(v: Tensor) -> Tensor:
            return own.noise**2 * v + own.operator(variance * transposed(v))

        rest = conjugate_gradients(covariance, own.residual(seen.detach()), self.iterations, own.noise**2)
        (score,) = torch.autograd.grad(p.x0, at, transposed(rest))
        return p, score
