"""The denoising loss: weighting(logsnr) · norm(y - y_hat), y in any space."""

import inspect
import warnings

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import NOISE, Target
from xhat.diffusion.weightings import Weighting, constant, density_part, name_of, require_weighting, space_of
from xhat.losses.norms import Norm, TimedNorm, WeightedNorm, squared, squared_distance
from xhat.losses.where import Where, where_counted
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES


@LOSSES.register
class Denoising(Loss):
    """weighting(logsnr(t)) · norm(y - y_hat), with y = a x0 + b noise in `space`, whatever the network itself predicts, (B,).

    The prediction is taken into the space by the linear map of `targets.decode`; no clamp. The norm reduces pixels.

    Args:
        space: in which the error is measured.
        weighting: of the noise levels, called with (logsnr, schedule). It multiplies as it stands; one that is written for
            another space is warned about, see `weightings.convert_weighting`.
        norm: squared, absolute, euclidean, huber(d), pseudo_huber(d) or scheduled_pseudo_huber(lowest).
        where: which pixels count, and how much: masked("mask") or masked_mean("mask"), of the batch's own `extra`. Where a mask
            is 0 the error has no gradient at all. By default all count alike.

    Raises:
        ValueError: the weighting cannot be called so, or the norm cannot weigh pixels; when called: there is no such mask.
    """

    def __init__(
        self,
        space: Target = NOISE,
        weighting: Weighting = constant,
        norm: Norm | WeightedNorm | TimedNorm = squared,
        where: Where | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(space, Target):
            raise TypeError(f"space must be a target such as X0 or V, got {space!r}")
        kind = weighting if isinstance(weighting, type) else type(weighting)
        if issubclass(kind, Loss):
            name = kind.__name__
            raise ValueError(f"{name} is a loss, no weighting: put it around this one, {name}(Denoising(...))")
        require_weighting(weighting)
        written_for = space_of(weighting)
        if written_for is not None and written_for.name != space.name:
            other = written_for.name.upper()
            warnings.warn(
                f"{name_of(weighting)} is written for the {written_for.name} loss, this one is in {space.name} space: "
                f"use space={other}, or convert_weighting({name_of(weighting)}(...), {other}, {space.name.upper()})",
                stacklevel=2,
            )
        if where is not None:
            _require_where(where, norm)
        self.space, self.weighting, self.norm, self.where = space, weighting, norm, where

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return self.weighted(denoiser, draw, self.weighting)

    def weighted(self, denoiser: Denoiser, draw: Draw, weighting: Weighting) -> Tensor:
        """As `forward`, with another weighting."""
        schedule = denoiser.schedule
        predicted, target = draw.prediction.in_space(self.space), self.space.of(schedule, draw.t, draw.x0, draw.noise)
        plain = self.norm is squared and self.where is None
        loss = squared_distance(predicted, target) if plain else self._measure(draw, predicted - target)
        # a product with ones would cost a pass over the schedule
        return loss if weighting == constant else weighting(schedule.logsnr(draw.t), schedule) * loss

    def _measure(self, draw: Draw, error: Tensor) -> Tensor:
        """The norm of the error where it counts, (B,)."""
        norm = self.norm.at(draw.t) if hasattr(self.norm, "at") else self.norm
        if self.where is None:
            return norm(error)
        weight = self.where(draw, error)
        return norm(where_counted(weight, error), weight)  # type: ignore[call-arg]

    def density_part(self, schedule: Schedule, t: Tensor) -> Tensor:
        return density_part(self.weighting, schedule, t)

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        return self.noise_weight_with(denoiser, logsnr, self.weighting)

    def noise_weight_with(self, denoiser: Denoiser, logsnr: Tensor, weighting: Weighting) -> Tensor | None:
        """As `noise_weight`, with another weighting."""
        if self.norm is not squared:
            return None
        schedule = denoiser.schedule
        # gain takes the error from x0 to the space; exp(logsnr) takes it from x0 to noise
        factor = self.space.gain_at(schedule, logsnr) * torch.exp(-logsnr)
        return weighting(logsnr, schedule) * factor


def _require_where(where: Where, norm: Norm | WeightedNorm | TimedNorm) -> None:
    if not callable(where):
        raise ValueError(f'where says which pixels count, as masked("mask") does, got {where!r}')
    if not hasattr(norm, "at") and "weight" not in inspect.signature(norm).parameters:
        name = getattr(norm, "__name__", type(norm).__name__)
        raise ValueError(f"the norm {name} cannot weigh pixels: give it a second parameter, weight=None, for where")
