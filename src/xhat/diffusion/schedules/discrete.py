"""A schedule of T steps: a table."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from xhat.budgets import MOST_STEPS, require_at_most
from xhat.diffusion.schedules.base import Schedule, float_dtype
from xhat.registry import SCHEDULES

__all__ = ["Discrete"]


class Discrete(Schedule):
    """A table of T steps: alpha_bar_i at t = i/T, alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) (DDPM, eq. 4).

    alpha_bar_0 = 1 is the data. Between the grid's points alpha_bar is linear in t, so that every function here is
    continuous and `t_of` exact; training draws the grid alone. `dlogsnr` at a grid point is the mean of both sides.

    Args:
        alpha_bar: (T,) cumulative products alpha_bar_1..alpha_bar_T, decreasing, in [0, 1).
    """

    alpha_bar: Tensor
    noise_variance: Tensor

    def __init__(self, alpha_bar: Tensor) -> None:
        super().__init__()
        alpha_bar = alpha_bar.detach().to(torch.float64).flatten()
        self._set(alpha_bar, 1 - alpha_bar)

    def _set(self, alpha_bar: Tensor, noise_variance: Tensor) -> None:
        if alpha_bar.numel() < 2 or not bool((alpha_bar.diff() < 0).all() & (alpha_bar[0] < 1) & (alpha_bar[-1] >= 0)):
            raise ValueError("Discrete needs at least 2 steps with 1 > alpha_bar_1 > ... > alpha_bar_T >= 0")
        self.steps = alpha_bar.numel()
        self.t_min = 1 / self.steps
        self.register_buffer("alpha_bar", torch.cat([alpha_bar.new_ones(1), alpha_bar]))
        self.register_buffer("noise_variance", torch.cat([alpha_bar.new_zeros(1), noise_variance]))

    @classmethod
    def from_betas(cls, betas: Tensor) -> "Discrete":
        """Any table of forward variances beta_1..beta_T in (0, 1]; only the last may be 1."""
        betas = torch.as_tensor(betas).detach().to(torch.float64).flatten()
        if not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError("betas must lie in (0, 1]: they are the variances of the forward steps")
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        schedule = cls.__new__(cls)
        nn.Module.__init__(schedule)
        schedule._set(log_alpha_bar.exp(), -torch.expm1(log_alpha_bar))  # 1 - alpha_bar without cancellation
        return schedule

    @classmethod
    def linear_beta(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "Discrete":
        """DDPM's linear betas (Ho et al. 2020, section 4)."""
        require_at_most(MOST_STEPS, steps=steps)
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def cosine_beta(cls, steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> "Discrete":
        """Improved DDPM's cosine betas (Nichol & Dhariwal 2021, eq. 17)."""
        require_at_most(MOST_STEPS, steps=steps)
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls.from_betas((1 - f[1:] / f[:-1]).clamp(max=beta_max))

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> "Discrete":
        """The table of a diffusers scheduler (its `alphas_cumprod`).

        Raises:
            ValueError: the scheduler has no such table (flow matching: use `Flow(shift)`).
        """
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            raise ValueError(f"{type(scheduler).__name__} has no alphas_cumprod; for flow matching use Flow(shift)")
        return cls(table)

    def index(self, t: Tensor) -> Tensor:
        """The 1-based DDPM step of t, int64; diffusers' 0-based timestep is one less."""
        assert self.steps is not None
        return (t.to(torch.float64) * self.steps).round().long()

    def time(self, index: Tensor) -> Tensor:
        """t of the 1-based DDPM step: index / T, float32."""
        assert self.steps is not None
        return (index.to(torch.float64) / self.steps).float()

    def rescale_zero_terminal(self) -> "Discrete":
        root = self.alpha_bar[1:].sqrt()
        return Discrete(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The left grid point of each t and the fraction of the way to the next; float32 times snap to the grid."""
        assert self.steps is not None
        x = t.to(torch.float64) * self.steps
        nearest = x.round()
        x = torch.where((x - nearest).abs() < 1e-3, nearest, x)
        left = x.detach().floor().clamp(0, self.steps - 1).long()
        return left, x - left

    def _between(self, t: Tensor, *tables: Tensor) -> list[Tensor]:
        left, fraction = self._cell(t)
        right = left + 1
        return [torch.lerp(table[left], table[right], fraction) for table in tables]

    def alpha(self, t: Tensor) -> Tensor:
        return self._between(t, self.alpha_bar)[0].sqrt().to(float_dtype(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self._between(t, self.noise_variance)[0].sqrt().to(float_dtype(t))

    def logsnr(self, t: Tensor) -> Tensor:
        signal, noise = self._between(t, self.alpha_bar, self.noise_variance)
        return (signal.log() - noise.log()).to(float_dtype(t))

    def dlogsnr(self, t: Tensor) -> Tensor:
        assert self.steps is not None
        slopes = self.alpha_bar.diff() * self.steps
        left, fraction = self._cell(t)
        before = torch.where(fraction == 0, slopes[(left - 1).clamp(min=0)], slopes[left])
        # at alpha = 0 the slope is infinite; e^-40 keeps products with errors that vanish there at their limit, 0
        signal, noise = self._between(t, self.alpha_bar, self.noise_variance)
        product = (signal * noise).clamp(min=math.exp(-40))
        return ((before + slopes[left]) / (2 * product)).to(float_dtype(t))

    def t_of(self, logsnr: Tensor) -> Tensor:
        assert self.steps is not None
        wanted = torch.sigmoid(-logsnr.to(torch.float64))
        right = torch.searchsorted(self.noise_variance, wanted.detach()).clamp(1, self.steps)
        low, high = self.noise_variance[right - 1], self.noise_variance[right]
        return ((right - 1 + ((wanted - low) / (high - low)).clamp(0, 1)) / self.steps).to(float_dtype(logsnr))


SCHEDULES.add("Discrete.linear_beta", Discrete.linear_beta, "linear_beta")
SCHEDULES.add("Discrete.cosine_beta", Discrete.cosine_beta, "cosine_beta")
