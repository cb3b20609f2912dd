"""What is surprising about an objective, in plain words; each sentence is computed, and only said where it applies."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from xhat.analysis.profile import Anatomy
from xhat.diffusion.targets import SCALED_NOISE, STEP_NOISE, Target, forward_step
from xhat.losses.denoising import Denoising
from xhat.losses.increment import Increment
from xhat.losses.norms import squared
from xhat.losses.uncertainty import LearnedUncertainty
from xhat.objective.multipliers import Multiplier
from xhat.objective.objective import Objective

Fact = Callable[[Anatomy, Objective], str | None]


def facts(anatomy: Anatomy, objective: Objective) -> list[str]:
    """The sentences that apply."""
    return list(named_facts(anatomy, objective).values())


def named_facts(anatomy: Anatomy, objective: Objective) -> dict[str, str]:
    """As `facts`, by the name of the function that says it: the same name is the same fact, perhaps in other numbers."""
    asked = (*(OF_WEIGHTS if anatomy.counted else ()), *OF_CHOICES)
    said = {fact.__name__: fact(anatomy, objective) for fact in asked}
    return {name: sentence for name, sentence in said.items() if sentence is not None}


def maximum_likelihood(anatomy: Anatomy, objective: Objective) -> str | None:
    """Constant relative to the bound."""
    if not anatomy.constant:
        return None
    return "Relative to the variational bound every noise level weighs the same: minimizing this is maximum likelihood."


def augmented_bound(anatomy: Anatomy, objective: Objective) -> str | None:
    """Monotone relative to the bound."""
    if anatomy.constant or not anatomy.monotone:
        return None
    return (
        f"The weighting relative to the bound never falls as the noise grows ({_share(anatomy, 0)} of its largest value at "
        f"logsnr {anatomy.logsnr[0]:.1f}, {_share(anatomy, -1)} at {anatomy.logsnr[-1]:.1f}). So this is a bound on the "
        "likelihood of data with Gaussian noise added, averaged over the strength of that noise (Kingma & Gao 2023)."
    )


def no_bound(anatomy: Anatomy, objective: Objective) -> str | None:
    """Not monotone relative to the bound; where it falls most."""
    if anatomy.monotone:
        return None
    weight = torch.tensor(anatomy.effective)
    last = int((weight.cummax(0).values - weight).argmax())
    first = int(weight[: last + 1].argmax())
    return (
        f"The weighting relative to the bound is not monotone: from logsnr {anatomy.logsnr[first]:.1f} to "
        f"{anatomy.logsnr[last]:.1f}, towards more noise, it falls to {_number(weight[last] / weight[first])} of what it was. "
        "So this is no bound on the likelihood, not even of data with noise added (Kingma & Gao 2023)."
    )


def untrained_noise(anatomy: Anatomy, objective: Objective) -> str | None:
    """The weight on the output tends to 0 with the signal: v with min-SNR."""
    weight = torch.tensor(anatomy.weights[anatomy.output])
    slope = (weight[-2].log() - weight[-1].log()) / (anatomy.logsnr[-2] - anatomy.logsnr[-1])
    share = weight[-1] / weight.max()
    if not (share < 0.01 and slope > 0.25):
        return None
    return (
        f"Written on the network's own output ({anatomy.output}), the weight tends to 0 with growing noise: at logsnr "
        f"{anatomy.logsnr[-1]:.1f} it is {_number(share)} of its largest. Sampling starts there, with an output that is hardly "
        "trained."
    )


def gradient_span(anatomy: Anatomy, objective: Objective) -> str | None:
    """The gradient differs much between levels."""
    scale = torch.tensor(anatomy.gradient)
    logsnr = torch.tensor(anatomy.logsnr)[torch.isfinite(scale) & (scale > 0)]
    scale = scale[torch.isfinite(scale) & (scale > 0)]
    if len(scale) == 0 or scale.max() < 100 * scale.min():
        return None
    large = logsnr[scale > 0.1 * scale.max()]
    return (
        "The gradient that one drawn image sends into the untrained network spans a factor of "
        f"{_number(scale.max() / scale.min())}: it is largest at logsnr {logsnr[scale.argmax()]:.1f}, and more than a tenth of "
        f"that only from {large.max():.1f} to {large.min():.1f}. Gradient clipping and Adam's averages follow the largest."
    )


def scaled_noise_loss(anatomy: Anatomy, objective: Objective) -> str | None:
    """A loss on sigma · noise."""
    names = [name for name, loss in _denoising(objective) if loss.space == SCALED_NOISE]
    if not names:
        return None
    ratio = objective.denoiser.schedule.sigma(_times(anatomy)[0]) ** 2
    return (
        f"{_quoted(names)}: the squared error of sigma·noise is that of the noise times sigma². At the lowest noise shown "
        f"(logsnr {anatomy.logsnr[0]:.1f}) a step has {_number(ratio)} of the weight that the noise loss gives it; a weight of "
        "1/sigma² undoes it."
    )


def step_noise_floor(anatomy: Anatomy, objective: Objective) -> str | None:
    """The noise of one step: what is known of it, and what no network can know."""
    losses = [loss for _, loss in _denoising(objective) if not isinstance(loss, Increment)]
    if STEP_NOISE not in (objective.denoiser.target, *(loss.space for loss in losses)):
        return None
    known, i = _known(anatomy, objective), len(anatomy.t) // 2
    return (
        "Of the variance beta of the noise that one step adds, only a share beta/sigma² follows from z and x0 together: "
        f"{_number(known[i])} at logsnr {anatomy.logsnr[i]:.1f}. The rest, {_number(1 - known[i])}, is a floor that no network "
        "can remove. step_noise is here the expectation, beta/sigma · noise, so that the floor is not in the loss; its error "
        "is the noise's times beta/sigma."
    )


def increment_floor(anatomy: Anatomy, objective: Objective) -> str | None:
    """A loss on the increment itself: the floor is in its value."""
    names = [name for name, loss in _denoising(objective) if isinstance(loss, Increment)]
    if not names:
        return None
    known = _known(anatomy, objective)
    return (
        f"{_quoted(names)}: of the variance beta of the noise that one step adds, {_number(1 - known.max())} to "
        f"{_number(1 - known.min())}, depending on the level, does not follow even from z and x0 together (1 - beta/sigma²). "
        "That is a floor of this loss that no network can remove, and noise in its gradient. denoising(space=step_noise) has "
        "the same minimum without it."
    )


def amplified_in_x0(anatomy: Anatomy, objective: Objective) -> str | None:
    """A noise-like output at high noise."""
    return _amplified(anatomy, "x0", -1, 1 / _gain(objective.denoiser.target, objective, anatomy.logsnr[-1]))


def amplified_in_noise(anatomy: Anatomy, objective: Objective) -> str | None:
    """An image-like output at low noise."""
    level = anatomy.logsnr[0]
    squared_ratio = torch.tensor(level).exp() / _gain(objective.denoiser.target, objective, level)
    return _amplified(anatomy, "the noise", 0, squared_ratio)


def sampler_moves_samples(anatomy: Anatomy, objective: Objective) -> str | None:
    """Times that are not uniform."""
    low, high = anatomy.middle_half
    name = type(objective.times).__name__
    if objective.times.learns:
        return f"{name} draws more samples where the loss is large, and divides by the density: what is learned stays the same."
    if max(anatomy.importance) <= 1.001 * min(anatomy.importance):
        return None
    return (
        f"{name} says where the samples go, half of them between logsnr {low:.1f} and {high:.1f}, and not what is learned: the "
        f"loss of each is divided by its density. Weighed so, {anatomy.effective_share:.1%} of the samples would do as well."
    )


def other_minimum(anatomy: Anatomy, objective: Objective) -> str | None:
    """Norms that are not squared."""
    found = [(name, loss.norm) for name, loss in _denoising(objective) if loss.norm is not squared]
    if not found:
        return None
    name, norm = found[0]
    centre = CENTRES.get(getattr(norm, "__name__", type(norm).__name__), "another point")
    return (
        f'"{name}" is no squared error: its best prediction is not the mean of all that z may have been, but {centre}. '
        "Samplers assume the mean, and there is no weighting relative to the bound."
    )


def balanced_later(anatomy: Anatomy, objective: Objective) -> str | None:
    """A learned uncertainty divides by the loss it finds."""
    names = [name for name, term in objective.terms.items() if isinstance(term.loss, LearnedUncertainty)]
    if not names:
        return None
    return (
        f"{_quoted(names)}: the weights are those before training; the learned uncertainty will divide by the error it finds."
    )


def not_in_the_numbers(anatomy: Anatomy, objective: Objective) -> str | None:
    """Terms without a weight."""
    if not anatomy.left_out:
        return None
    found = [n for n in anatomy.left_out if isinstance(objective.terms[n].weight, Multiplier)]
    plain = [n for n in anatomy.left_out if n not in found]
    parts = [f"{_quoted(plain)} (no weighted squared error of the network)"] if plain else []
    parts += [f"{_quoted(found)} (its factor is found during training)"] if found else []
    return f"Not in the weights and the gradient: {', '.join(parts)}."


CENTRES = {
    "absolute": "the median of each pixel",
    "euclidean": "their geometric median, the image with the least mean distance to them",
    "huber": "between the mean and the median of each pixel",
}

OF_WEIGHTS: tuple[Fact, ...] = (maximum_likelihood, augmented_bound, no_bound, untrained_noise, gradient_span)
OF_CHOICES: tuple[Fact, ...] = (
    scaled_noise_loss,
    step_noise_floor,
    increment_floor,
    amplified_in_x0,
    amplified_in_noise,
    sampler_moves_samples,
    other_minimum,
    balanced_later,
    not_in_the_numbers,
)


def _denoising(objective: Objective) -> Iterator[tuple[str, Denoising]]:
    """The denoising losses, also those within a hybrid."""
    for name, term in objective.terms.items():
        for loss in term.loss.parts():
            if isinstance(loss, Denoising):
                yield name, loss


def _times(anatomy: Anatomy) -> Tensor:
    return torch.tensor(anatomy.t, dtype=torch.float64)


def _known(anatomy: Anatomy, objective: Objective) -> Tensor:
    """beta/sigma²: the share of the step noise's variance that z and x0 determine, (N,)."""
    schedule, t = objective.denoiser.schedule, _times(anatomy)
    return forward_step(schedule, t)[1] / schedule.sigma(t) ** 2


def _gain(target: Target, objective: Objective, logsnr: float) -> Tensor:
    return target.gain_at(objective.denoiser.schedule, torch.tensor([logsnr], dtype=torch.float64)).detach()


def _amplified(anatomy: Anatomy, what: str, level: int, squared_ratio: Tensor) -> str | None:
    ratio = float(squared_ratio.sqrt())
    if ratio < 10:
        return None
    where = "highest" if level else "lowest"
    return (
        f"At the {where} noise shown (logsnr {anatomy.logsnr[level]:.1f}) an error in the network's output ({anatomy.output}) "
        f"is {_number(ratio)} times as large an error in {what}."
    )


def _share(anatomy: Anatomy, level: int) -> str:
    return _number(anatomy.effective[level] / max(anatomy.effective))


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _number(value: float | Tensor) -> str:
    """Two digits, without an exponent where that is short."""
    value = float(value)
    return f"{value:.0f}" if 100 <= value < 1e5 else f"{value:.2g}"
