"""Manifold preserving guidance: a penalty pulls x0_hat itself, and nothing passes through the network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Conditioned, Prediction
from xhat.registry import STEERINGS
from xhat.sampling.steering.base import Moves, penalty_of
from xhat.tensors import over_images


@STEERINGS.register
@dataclass(frozen=True)
class MPGD(Moves):
    """x0_hat - scale sigma²/alpha² · the penalty's gradient at x0_hat.

    He et al. 2024 (Manifold preserving guided diffusion, algorithm 1, without its autoencoder): the penalty moves the clean
    image, which the next step puts noise on, so that no step leaves what noisy images look like, and the network is called as
    often as without. sigma²/alpha² is the variance of the clean image around z/alpha: for a flat prior and a penalty that is
    minus a log-likelihood, scale 1 is a gradient step of the posterior mean.

    Args:
        penalty: (B, ...) -> (B,).
        scale: of its gradient.
        most: sigma²/alpha² at most, which grows without bound towards pure noise.
    """

    penalty: Callable[[Tensor], Tensor]
    scale: float = 1.0
    most: float = 1.0

    def rows(self, index: Tensor) -> Self:
        return replace(self, penalty=penalty_of(self.penalty, index))

    def moved(self, model: Conditioned, z: Tensor, t: Tensor) -> tuple[Prediction, Tensor]:
        p = model(z, t)
        with torch.enable_grad():
            image = p.x0.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.penalty(image).sum(), image)
        schedule, wide = model.schedule, t.double()
        alpha, sigma = schedule.alpha(wide), schedule.sigma(wide)
        variance = (sigma / alpha.clamp(min=1e-12)).square().clamp(max=self.most)
        # `moved` is asked for a score, of which x0_hat moves by sigma²/alpha
        score = torch.where(sigma > 0, variance * alpha / sigma.square().clamp(min=1e-300), torch.zeros_like(sigma))
        return p, -self.scale * over_images(score, z) * slope
