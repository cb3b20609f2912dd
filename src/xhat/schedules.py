"""Noise schedules: z_t = alpha(t) x0 + sigma(t) noise, t = 0 is data and t = 1 is noise."""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from xhat.precise import PreciseModule


class Schedule(PreciseModule):
    """A noise schedule, elementwise in t; immutable: every change returns a new one.

    Subclasses give `logsnr` = log(alpha²/sigma²), which decreases in t, its derivative `dlogsnr` = d logsnr / dt and its
    inverse `t_of`. With these the variance-preserving alpha² = sigmoid(logsnr), sigma² = sigmoid(-logsnr) follow.

    Attributes:
        steps: T of a discrete schedule, whose times are i/T, i = 0..T; None in continuous time.
        t_min: the lower end of the times that are trained on (1/T when discrete); the upper end is 1.
    """

    steps: int | None = None
    t_min: float = 0.0

    @property
    def device(self) -> torch.device:
        """Where times must be to be asked about: that of the tables or parameters, the CPU for closed forms."""
        held = next((x for x in (*self.buffers(), *self.parameters())), None)
        return torch.device("cpu") if held is None else held.device

    @abstractmethod
    def logsnr(self, t: Tensor) -> Tensor:
        """log(alpha²/sigma²) at t, any shape; ±inf where sigma or alpha is 0."""

    @abstractmethod
    def dlogsnr(self, t: Tensor) -> Tensor:
        """d logsnr / dt at t, negative, any shape."""

    @abstractmethod
    def t_of(self, logsnr: Tensor) -> Tensor:
        """The time at which the schedule has this logsnr: the inverse of `logsnr`."""

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the clean image at t, any shape."""
        return torch.sigmoid(self.logsnr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise at t, any shape."""
        return torch.sigmoid(-self.logsnr(t)).sqrt()

    def rescale_zero_terminal(self) -> "Schedule":
        """The same schedule with alpha(1) = 0: alpha shifted and scaled, alpha(0) kept (Lin et al. 2023, Algorithm 1)."""
        return _ZeroTerminal(self)


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
        _require_falling(logsnr_max, logsnr_min)
        self.u_min = 2 / math.pi * math.atan(math.exp(-logsnr_max / 2))
        self.u_max = 2 / math.pi * math.atan2(1.0, math.exp(logsnr_min / 2))

    def _u(self, t: Tensor) -> Tensor:
        return self.u_min + (self.u_max - self.u_min) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - self._u(t)))  # as a sine it is exactly 0 at u = 1

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * self._u(t))

    def logsnr(self, t: Tensor) -> Tensor:
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def dlogsnr(self, t: Tensor) -> Tensor:
        return -math.pi * (self.u_max - self.u_min) / (self.alpha(t) * self.sigma(t))

    def t_of(self, logsnr: Tensor) -> Tensor:
        u = 2 / math.pi * torch.atan(torch.exp(-logsnr / 2))
        return (u - self.u_min) / (self.u_max - self.u_min)


class LinearLogSNR(Schedule):
    """logsnr falls linearly from logsnr_max to logsnr_min, variance preserving.

    The defaults are VDM's initial values (Kingma et al. 2021, gamma from -13.3 to 5).
    """

    def __init__(self, logsnr_min: float = -5.0, logsnr_max: float = 13.3) -> None:
        super().__init__()
        _require_falling(logsnr_max, logsnr_min)
        if math.isinf(logsnr_max - logsnr_min):
            raise ValueError("LinearLogSNR needs finite limits: logsnr_min and logsnr_max")
        self.logsnr_min, self.logsnr_max = logsnr_min, logsnr_max

    def logsnr(self, t: Tensor) -> Tensor:
        return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * t

    def dlogsnr(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.logsnr_min - self.logsnr_max)

    def t_of(self, logsnr: Tensor) -> Tensor:
        return (logsnr - self.logsnr_max) / (self.logsnr_min - self.logsnr_max)


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
        _require_falling(logsnr_max, logsnr_min)
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
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def cosine_beta(cls, steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> "Discrete":
        """Improved DDPM's cosine betas (Nichol & Dhariwal 2021, eq. 17)."""
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
        x = torch.where((x - x.round()).abs() < 1e-3, x.round(), x)
        left = x.detach().floor().clamp(0, self.steps - 1).long()
        return left, x - left

    def _between(self, table: Tensor, t: Tensor) -> Tensor:
        left, fraction = self._cell(t)
        return torch.lerp(table[left], table[left + 1], fraction)

    def alpha(self, t: Tensor) -> Tensor:
        return self._between(self.alpha_bar, t).sqrt().to(_dtype(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self._between(self.noise_variance, t).sqrt().to(_dtype(t))

    def logsnr(self, t: Tensor) -> Tensor:
        return (self._between(self.alpha_bar, t).log() - self._between(self.noise_variance, t).log()).to(_dtype(t))

    def dlogsnr(self, t: Tensor) -> Tensor:
        assert self.steps is not None
        slopes = self.alpha_bar.diff() * self.steps
        left, fraction = self._cell(t)
        before = torch.where(fraction == 0, slopes[(left - 1).clamp(min=0)], slopes[left])
        # at alpha = 0 the slope is infinite; e^-40 keeps products with errors that vanish there at their limit, 0
        product = (self._between(self.alpha_bar, t) * self._between(self.noise_variance, t)).clamp(min=math.exp(-40))
        return ((before + slopes[left]) / (2 * product)).to(_dtype(t))

    def t_of(self, logsnr: Tensor) -> Tensor:
        assert self.steps is not None
        wanted = torch.sigmoid(-logsnr.to(torch.float64))
        right = torch.searchsorted(self.noise_variance, wanted.detach()).clamp(1, self.steps)
        low, high = self.noise_variance[right - 1], self.noise_variance[right]
        return ((right - 1 + ((wanted - low) / (high - low)).clamp(0, 1)) / self.steps).to(_dtype(logsnr))


class _ZeroTerminal(Schedule):
    """alpha'(t) = alpha(0) (alpha(t) - alpha(1)) / (alpha(0) - alpha(1)), sigma'² = 1 - alpha'²."""

    def __init__(self, base: Schedule) -> None:
        super().__init__()
        self.base, self.t_min = base, base.t_min
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        first, last = (float(a) for a in base.alpha(ends))
        self.last, self.scale = last, first / (first - last)

    def _alpha(self, t: Tensor) -> Tensor:
        return self.scale * (self.base.alpha(t.to(torch.float64)) - self.last)

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha(t).to(_dtype(t))

    def sigma(self, t: Tensor) -> Tensor:
        alpha = self._alpha(t)
        return ((1 - alpha) * (1 + alpha)).sqrt().to(_dtype(t))

    def logsnr(self, t: Tensor) -> Tensor:
        alpha = self._alpha(t)
        return (2 * alpha.log() - torch.log((1 - alpha) * (1 + alpha))).to(_dtype(t))

    def dlogsnr(self, t: Tensor) -> Tensor:
        wide, alpha = t.to(torch.float64), self._alpha(t)
        slope = self.scale * self.base.alpha(wide) * self.base.sigma(wide) ** 2 * self.base.dlogsnr(wide)
        return (slope / (alpha * (1 - alpha) * (1 + alpha))).to(_dtype(t))

    def t_of(self, logsnr: Tensor) -> Tensor:
        alpha = torch.sigmoid(logsnr.to(torch.float64)).sqrt() / self.scale + self.last
        base_logsnr = 2 * alpha.log() - torch.log((1 - alpha) * (1 + alpha))
        return self.base.t_of(base_logsnr).to(_dtype(logsnr))

    def rescale_zero_terminal(self) -> Schedule:
        return self


def _dtype(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _require_falling(logsnr_max: float, logsnr_min: float) -> None:
    if not logsnr_min < logsnr_max:
        raise ValueError(f"logsnr must fall from t = 0 to 1: got logsnr_max {logsnr_max}, logsnr_min {logsnr_min}")
