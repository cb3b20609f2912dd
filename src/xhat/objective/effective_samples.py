"""How many of the samples drawn count: importance weights of large variance waste the rest."""

import warnings
from collections.abc import Mapping

import torch

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times import Stratified, TimeSampler, Uncorrected
from xhat.objective.terms import Loss, Term

SAMPLES = 2**14
LEAST_SHARE = 0.25


def effective_share(times: TimeSampler, schedule: Schedule, loss: Loss | None = None) -> float:
    """(Σ w)² / (n Σ w²) of the factors w of n = 16,384 stratified samples (Kish 1965): 1 if all count alike.

    w is the importance, uniform density over own density, times what of the loss's weighting is a density (`from_density`): a
    loss that is weighted by the density it is drawn from has w = 1. Where w has no finite variance, because the tails are thin,
    the share goes on falling with n.

    Args:
        times: of an objective.
        schedule: of the times.
        loss: that is importance-weighted; None has no weighting.
    """
    t, importance = times.sample(schedule, SAMPLES, torch.Generator().manual_seed(0))
    w = importance.double()
    if loss is not None:
        w = w * loss.density_part(schedule, t.double())
    return float(w.sum() ** 2 / (SAMPLES * w.square().sum()))


def effective_shares(terms: Mapping[str, Term], times: TimeSampler, schedule: Schedule) -> dict[str, float]:
    """`effective_share` of each term whose loss depends on the drawn time."""
    drawn = {name: term.loss for name, term in terms.items() if term.loss.at_drawn_time}
    return {name: effective_share(times, schedule, loss) for name, loss in drawn.items()}


def warn_of_waste(terms: Mapping[str, Term], times: TimeSampler, schedule: Schedule) -> None:
    """One line for whoever draws with a density that was meant as the weighting, or whose tails are too thin to correct.

    Penalties of images are left to `inspect`: no density is meant as theirs.
    """
    if isinstance(times, Stratified):
        return  # uniform: an uneven weighting is what the user asked for
    meant = {name: term for name, term in terms.items() if not term.loss.is_penalty}
    least = min(effective_shares(meant, times, schedule).values(), default=1.0)
    if least >= LEAST_SHARE:
        return
    name = type(times.times if isinstance(times, Uncorrected) else times).__name__
    if isinstance(times, Uncorrected):
        warnings.warn(
            f"the loss is weighted by a density that has little to do with that of {name}, which weighs it, too: {least:.1%} "
            f"of the samples would do as well; leave from_density out, or draw {name}(...) without Uncorrected",
            stacklevel=3,
        )
        return
    warnings.warn(
        f"{name} draws some noise levels so rarely, and weighs them so much, that {least:.1%} of the samples would do as well; "
        f"where its density is the weighting, as in the code of SD3 and EDM, say so: weighting=from_density({name}(...)); "
        "otherwise draw Stratified() times",
        stacklevel=3,
    )
