"""What a schedule is, and what follows from it."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from xhat.registry import SCHEDULES
from xhat.tensors import PreciseModule

__all__ = ["Schedule", "zero_terminal"]


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

    def on_grid(self, t: Tensor) -> Tensor:
        """The nearest time that the schedule has: t itself in continuous time, i/T when discrete."""
        return t if self.steps is None else (t * self.steps).round() / self.steps

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the clean image at t, any shape."""
        return torch.sigmoid(self.logsnr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise at t, any shape."""
        return torch.sigmoid(-self.logsnr(t)).sqrt()

    def prior_std(self) -> Tensor:
        """sqrt(alpha(1)² + sigma(1)²), () float64: p(z_1) is N(0, prior_std²) for the bound, the ODE and every sampler.

        Where images of unit variance end: 1 on every variance-preserving schedule, also on one that keeps signal at t = 1.
        """
        one = torch.ones((), dtype=torch.float64, device=self.device)
        return torch.hypot(self.alpha(one), self.sigma(one))

    @property
    def t_clean(self) -> float:
        """The time at which no noise is left: 0, or below it where t = 0 still has some; -inf where it only fades out."""
        infinite = torch.tensor(math.inf, dtype=torch.float64, device=self.device)
        return min(0.0, float(self.t_of(infinite).detach()))

    def rescale_zero_terminal(self) -> "Schedule":
        """The same schedule with alpha(1) = 0: alpha shifted and scaled, alpha(0) kept (Lin et al. 2023, Algorithm 1)."""
        return ZeroTerminal(self)


class ZeroTerminal(Schedule):
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
        return self._alpha(t).to(float_dtype(t))

    def sigma(self, t: Tensor) -> Tensor:
        alpha = self._alpha(t)
        return ((1 - alpha) * (1 + alpha)).sqrt().to(float_dtype(t))

    def logsnr(self, t: Tensor) -> Tensor:
        alpha = self._alpha(t)
        return (2 * alpha.log() - torch.log((1 - alpha) * (1 + alpha))).to(float_dtype(t))

    def dlogsnr(self, t: Tensor) -> Tensor:
        wide, alpha = t.to(torch.float64), self._alpha(t)
        slope = self.scale * self.base.alpha(wide) * self.base.sigma(wide) ** 2 * self.base.dlogsnr(wide)
        return (slope / (alpha * (1 - alpha) * (1 + alpha))).to(float_dtype(t))

    def t_of(self, logsnr: Tensor) -> Tensor:
        alpha = torch.sigmoid(logsnr.to(torch.float64)).sqrt() / self.scale + self.last
        base_logsnr = 2 * alpha.log() - torch.log((1 - alpha) * (1 + alpha))
        return self.base.t_of(base_logsnr).to(float_dtype(logsnr))

    def rescale_zero_terminal(self) -> Schedule:
        return self


def float_dtype(t: Tensor) -> torch.dtype:
    """The dtype of answers about t: its own, but float32 at least."""
    return torch.promote_types(t.dtype, torch.float32)


def require_falling(logsnr_max: float, logsnr_min: float) -> None:
    """Raise ValueError unless logsnr falls from t = 0 to t = 1."""
    if not logsnr_min < logsnr_max:
        raise ValueError(f"logsnr must fall from t = 0 to 1: got logsnr_max {logsnr_max}, logsnr_min {logsnr_min}")


@SCHEDULES.register
def zero_terminal(schedule: Schedule) -> Schedule:
    """As `Schedule.rescale_zero_terminal`."""
    return schedule.rescale_zero_terminal()
