"""Weightings made of others: a density of times as a weighting, products, and the same loss in another space."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import Target
from xhat.diffusion.times import TimeSampler
from xhat.diffusion.weightings.base import NO_SIGNAL, Weighting, require_weighting, space_of
from xhat.registry import WEIGHTINGS

__all__ = ["convert_weighting", "density_part", "from_density", "of_size", "product"]


@WEIGHTINGS.register
@dataclass(frozen=True)
class from_density:
    """The density of a time sampler relative to the uniform one, as a weighting: for papers whose density is the weighting.

    EDM's log-normal and SD3's logit-normal draw unevenly and correct nothing: their loss is the uniform expectation of
    (density · loss). Written this way it no longer matters where the samples are drawn.

    Raises:
        ValueError: the density is a learned one, which would change the objective while it is trained.
    """

    times: TimeSampler

    def __post_init__(self) -> None:
        if self.times.learns:
            raise ValueError(
                f"the density of {type(self.times).__name__} follows the losses, and with it the objective would: name the "
                "density that is meant, for example from_density(LogitNormal())"
            )

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return self.times.relative_density(schedule, schedule.t_of(logsnr))


@WEIGHTINGS.register
class product:
    """The product of weightings, all for the same space or for any.

    Raises:
        ValueError: they are for different spaces.
    """

    def __init__(self, *factors: Weighting) -> None:
        for factor in factors:
            require_weighting(factor)
        spaces = {s.name: s for s in map(space_of, factors) if s is not None}
        if len(spaces) > 1:
            raise ValueError(f"weightings for different spaces ({', '.join(spaces)}) do not multiply: convert one first")
        self.factors, self.space = factors, next(iter(spaces.values()), None)

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return _product(self.factors, lambda factor: factor(logsnr, schedule), torch.ones_like(logsnr))

    def of_size(self, sample: tuple[int, ...]) -> "product":
        """With factors that are right for samples of this shape."""
        return product(*(of_size(factor, sample) for factor in self.factors))

    def __repr__(self) -> str:
        return f"product({', '.join(getattr(factor, '__name__', repr(factor)) for factor in self.factors)})"


@WEIGHTINGS.register
@dataclass(frozen=True)
class convert_weighting:
    """The weighting of the `space` loss that makes it the same loss as `weighting` makes of the `source` loss.

    ‖y - y_hat‖² = gain ‖x0 - x0_hat‖² in each space, so the new weight is weight · gain_source/gain_space. Example:
    convert_weighting(min_snr(5), X0, V) is min(SNR, 5)/(SNR + 1) on a variance-preserving schedule. Squared errors only.

    Args:
        weighting: of the `source` loss.
        source: the space that it is for.
        space: the space of the new one.
    """

    weighting: Weighting
    source: Target
    space: Target

    def __post_init__(self) -> None:
        require_weighting(self.weighting)

    def __call__(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        logsnr = logsnr.clamp(min=NO_SIGNAL)
        own = self.weighting(logsnr, schedule)
        return own * self.source.gain_at(schedule, logsnr) / self.space.gain_at(schedule, logsnr)


def of_size(weighting: Weighting, sample: tuple[int, ...]) -> Weighting:
    """A weighting as it is right for samples of this shape; most are for all."""
    found: Weighting = weighting.of_size(sample) if hasattr(weighting, "of_size") else weighting
    return found


def density_part(weighting: object, schedule: Schedule, t: Tensor) -> Tensor:
    """The part of a weighting that is a density of times, at t (n,): the product of what `from_density` has in it."""
    if isinstance(weighting, from_density):
        return weighting(schedule.logsnr(t.to(schedule.device)).detach(), schedule).to(t)
    inside: tuple[object, ...] = ()
    if isinstance(weighting, product):
        inside = weighting.factors
    elif isinstance(weighting, convert_weighting):
        inside = (weighting.weighting,)
    return _product(inside, lambda factor: density_part(factor, schedule, t), torch.ones_like(t))


def _product(factors: tuple[object, ...], value: Callable[..., Tensor], start: Tensor) -> Tensor:
    for factor in factors:
        start = start * value(factor)
    return start
