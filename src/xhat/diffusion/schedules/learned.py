"""A schedule with parameters."""

import torch
from torch import Tensor, nn

from xhat.diffusion.schedules.base import Schedule, require_falling
from xhat.registry import SCHEDULES

__all__ = ["Learned"]


@SCHEDULES.register
class Learned(Schedule):
    """VDM's monotone network for logsnr, variance preserving (Kingma et al. 2021, appendix H).

    -logsnr(t) = gamma_0 + (gamma_1 - gamma_0) (f(t) - f(0)) / (f(1) - f(0)),
    f(t) = |w1| t + mean_j |w3_j| tanh((|w2_j| (2t - 1) + b_j)/2); the ends gamma_0 < gamma_1 are learned too.

    Args:
        logsnr_min: initial logsnr at t = 1.
        logsnr_max: initial logsnr at t = 0.
        features: width of the hidden layer.
    """

    def __init__(self, logsnr_min: float = -5.0, logsnr_max: float = 13.3, features: int = 1024) -> None:
        super().__init__()
        require_falling(logsnr_max, logsnr_min)
        own = torch.Generator().manual_seed(0)
        self.gamma_0 = nn.Parameter(torch.tensor(-float(logsnr_max)))
        self.log_range = nn.Parameter(torch.tensor(float(logsnr_max - logsnr_min)).log())
        self.w1 = nn.Parameter(torch.ones(()))
        self.w2 = nn.Parameter(torch.randn(features, generator=own))
        self.b2 = nn.Parameter(torch.zeros(features))
        self.w3 = nn.Parameter(0.1 * torch.randn(features, generator=own))

    def _f(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f and its derivative; products and means instead of a matmul, which autocast would round to bf16."""
        t = t.unsqueeze(-1)
        h = torch.tanh((self.w2.abs() * (2 * t - 1) + self.b2) / 2)
        f = self.w1.abs() * t.squeeze(-1) + (self.w3.abs() * h).mean(-1)
        df = self.w1.abs() + (self.w3.abs() * self.w2.abs() * (1 - h * h)).mean(-1)
        return f, df

    def _ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._f(torch.zeros((), dtype=t.dtype, device=t.device))[0], self._f(
            torch.ones((), dtype=t.dtype, device=t.device)
        )[0]

    def shape_parameters(self) -> list[nn.Parameter]:
        """What leaves the ends where they are: the bound does not depend on it, the variance of its estimate does."""
        return [self.w1, self.w2, self.b2, self.w3]

    def logsnr(self, t: Tensor) -> Tensor:
        first, last = self._ends(t)
        return -(self.gamma_0 + self.log_range.exp() * (self._f(t)[0] - first) / (last - first))

    def dlogsnr(self, t: Tensor) -> Tensor:
        first, last = self._ends(t)
        return -self.log_range.exp() * self._f(t)[1] / (last - first)

    def t_of(self, logsnr: Tensor) -> Tensor:
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.logsnr(middle.detach()).detach() > logsnr.detach()
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        t = ((low + high) / 2).detach()
        return t - (self.logsnr(t) - logsnr) / self.dlogsnr(t)  # one Newton step carries the gradients

    def rescale_zero_terminal(self) -> Schedule:
        raise ValueError("a learned schedule moves while it is trained: lower its logsnr_min instead of rescaling it")
