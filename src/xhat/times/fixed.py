"""Densities of time that stay as they are."""

import math

import torch
from torch import Tensor

from xhat.schedules import Schedule
from xhat.times.base import TimeSampler


class Stratified(TimeSampler):
    """Uniform times, one in each of n equal strata: the lowest variance of all uniform draws (cf. VDM, appendix I.1)."""

    def cdf(self, t: Tensor) -> Tensor:
        return t

    def icdf(self, u: Tensor) -> Tensor:
        return u

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def relative_density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)  # on any support


class Uniform(Stratified):
    """Independent uniform times (DDPM, algorithm 1)."""

    stratified = False


class LogitNormal(TimeSampler):
    """t = sigmoid(loc + scale N(0, 1)) (Esser et al. 2024, SD3, eq. 19)."""

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        _require_positive(scale)
        self.loc, self.scale = loc, scale

    def _normal(self, t: Tensor) -> Tensor:
        return (torch.logit(t) - self.loc) / self.scale

    def cdf(self, t: Tensor) -> Tensor:
        return _normal_cdf(self._normal(t))

    def icdf(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.loc + self.scale * torch.special.ndtri(u))

    def density(self, t: Tensor) -> Tensor:
        return _normal_density(self._normal(t)) / (self.scale * t * (1 - t))


class LogNormalSigma(TimeSampler):
    """ln(sigma/alpha) ~ N(mean, std²) (Karras et al. 2022, EDM, table 1), mapped to t by the schedule."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        _require_positive(std)
        self.mean, self.std = mean, std

    def _known(self) -> Schedule:
        if self.schedule is None:
            raise ValueError("LogNormalSigma draws noise levels: bind(schedule) turns them into times")
        return self.schedule

    def _normal(self, t: Tensor) -> Tensor:
        schedule = self._known()
        return (-schedule.logsnr(t.to(schedule.device)).detach().cpu() / 2 - self.mean) / self.std

    def cdf(self, t: Tensor) -> Tensor:
        return _normal_cdf(self._normal(t))

    def icdf(self, u: Tensor) -> Tensor:
        schedule = self._known()
        logsnr = -2 * (self.mean + self.std * torch.special.ndtri(u))
        return schedule.t_of(logsnr.to(schedule.device)).detach().cpu()

    def density(self, t: Tensor) -> Tensor:
        schedule = self._known()
        slope = -schedule.dlogsnr(t.to(schedule.device)).detach().cpu() / 2
        return _normal_density(self._normal(t)) / self.std * slope


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _normal_cdf(x: Tensor) -> Tensor:
    cdf: Tensor = torch.special.ndtr(x)
    return cdf


def _require_positive(scale: float) -> None:
    if scale <= 0:
        raise ValueError(f"the scale of a time sampler must be positive, got {scale}")
