"""How many of the samples drawn count: importance weights of large variance waste the rest."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times import Stratified, TimeSampler
from xhat.diffusion.weightings import FromDensity, LearnedUncertainty, Moved, Product
from xhat.losses.image import ImageLoss
from xhat.objective.terms import Term

SAMPLES = 2**14
LEAST_SHARE = 0.25


def effective_share(times: TimeSampler, schedule: Schedule, weight: object = None) -> float:
    """(Σ w)² / (n Σ w²) of the factors w of n = 16,384 stratified samples (Kish 1965): 1 if all count alike.

    w is the importance, uniform density over own density, times what of the weighting is a density (`from_density`): a loss
    that is weighted by the density it is drawn from has w = 1. Where w has no finite variance, because the tails are thin, the
    share goes on falling with n.

    Args:
        times: of an objective on this schedule.
        schedule: of the times.
        weight: of a loss.
    """
    t, importance = times.sample(SAMPLES, torch.Generator().manual_seed(0))
    w = importance.double() * _density(weight, schedule, t.double())
    return float(w.sum() ** 2 / (SAMPLES * w.square().sum()))


def effective_shares(terms: Mapping[str, Term], times: TimeSampler, schedule: Schedule) -> dict[str, float]:
    """`effective_share` of each term whose loss depends on the drawn time."""
    drawn = {name: getattr(term.loss, "simple", term.loss) for name, term in terms.items() if term.loss.at_drawn_time}
    return {name: effective_share(times, schedule, getattr(loss, "weight", None)) for name, loss in drawn.items()}


def warn_of_waste(terms: Mapping[str, Term], times: TimeSampler, schedule: Schedule) -> None:
    """One line for whoever draws with a density that was meant as the weighting, or whose tails are too thin to correct.

    Image losses are left to `inspect`: no density is meant as theirs.
    """
    if isinstance(times, Stratified):
        return  # uniform: an uneven weighting is what the user asked for
    meant = {name: term for name, term in terms.items() if not isinstance(term.loss, ImageLoss)}
    least = min(effective_shares(meant, times, schedule).values(), default=1.0)
    if least >= LEAST_SHARE:
        return
    name = type(times).__name__
    warnings.warn(
        f"{name} draws some noise levels so rarely, and weighs them so much, that {least:.1%} of the samples would do as well; "
        f"where its density is the weighting, as in the code of SD3 and EDM, say so: weight=from_density({name}(...)); "
        "otherwise draw Stratified() times",
        stacklevel=3,
    )


def _density(weight: object, schedule: Schedule, t: Tensor) -> Tensor:
    """The part of a weighting that is a density of times, at t (n,)."""
    if isinstance(weight, FromDensity):
        return weight.on(schedule)(schedule.logsnr(t.to(schedule.device)).detach()).to(t)
    inner: tuple[object, ...] = ()
    if isinstance(weight, Product):
        inner = weight.factors
    elif isinstance(weight, Moved):
        inner = (weight.weight,)
    elif isinstance(weight, LearnedUncertainty):
        inner = (weight.base, weight.outer)
    total = torch.ones_like(t)
    for factor in inner:
        total = total * _density(factor, schedule, t)
    return total
