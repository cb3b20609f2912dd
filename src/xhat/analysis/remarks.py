"""What is surprising about an objective, in plain words; each sentence is computed, and appears only where it applies."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from xhat.analysis.profile import Profile
from xhat.diffusion.targets import SCALED_NOISE, STEP_NOISE, Target, forward_step
from xhat.diffusion.times import Uncorrected
from xhat.losses.balanced import BalancedLevels
from xhat.losses.denoising import Denoising
from xhat.losses.increment import Increment
from xhat.losses.norms import squared
from xhat.losses.uncertainty import LearnedUncertainty
from xhat.objective.multipliers import Multiplier
from xhat.objective.objective import Objective

Remark = Callable[[Profile, Objective], str | None]


def remarks(profile: Profile, objective: Objective) -> list[str]:
    """The sentences that apply."""
    return list(named_remarks(profile, objective).values())


def named_remarks(profile: Profile, objective: Objective) -> dict[str, str]:
    """As `remarks`, by the name of the function that says it: the same name is the same remark, perhaps in other numbers."""
    asked = (*(OF_WEIGHTS if profile.counted else ()), *OF_CHOICES)
    said = {remark.__name__: remark(profile, objective) for remark in asked}
    return {name: sentence for name, sentence in said.items() if sentence is not None}


def maximum_likelihood(profile: Profile, objective: Objective) -> str | None:
    """Constant relative to the bound."""
    if not profile.constant or _goes_on_changing(objective):
        return None
    return "Relative to the variational bound every noise level weighs the same: minimizing this is maximum likelihood."


def augmented_bound(profile: Profile, objective: Objective) -> str | None:
    """Monotone relative to the bound."""
    if profile.constant or not profile.monotone or _goes_on_changing(objective):
        return None
    return (
        f"The weighting relative to the bound never falls as the noise grows ({_share(profile, 0)} of its largest value at "
        f"logsnr {profile.logsnr[0]:.1f}, {_share(profile, -1)} at {profile.logsnr[-1]:.1f}). So this is a bound on the "
        "likelihood of data with Gaussian noise added, averaged over the strength of that noise (Kingma & Gao 2023)."
    )


def no_bound(profile: Profile, objective: Objective) -> str | None:
    """Not monotone relative to the bound; where it falls most."""
    if profile.monotone or _goes_on_changing(objective):
        return None
    weight = torch.tensor(profile.effective)
    last = int((weight.cummax(0).values - weight).argmax())
    first = int(weight[: last + 1].argmax())
    return (
        f"The weighting relative to the bound is not monotone: from logsnr {profile.logsnr[first]:.1f} to "
        f"{profile.logsnr[last]:.1f}, towards more noise, it falls to {_number(weight[last] / weight[first])} of what it was. "
        "So this is no bound on the likelihood, not even of data with noise added (Kingma & Gao 2023)."
    )


def untrained_noise(profile: Profile, objective: Objective) -> str | None:
    """The weight on the output tends to 0 with the signal: v with min-SNR."""
    weight = torch.tensor(profile.weights[profile.output])
    slope = (weight[-2].log() - weight[-1].log()) / (profile.logsnr[-2] - profile.logsnr[-1])
    share = weight[-1] / weight.max()
    if not (share < 0.01 and slope > 0.25):
        return None
    return (
        f"Written on the network's own output ({profile.output}), the weight tends to 0 with growing noise: at logsnr "
        f"{profile.logsnr[-1]:.1f} it is {_number(share)} of its largest. Sampling starts there, with an output that is hardly "
        "trained."
    )


def gradient_span(profile: Profile, objective: Objective) -> str | None:
    """The gradient differs much between levels."""
    scale = torch.tensor(profile.gradient)
    logsnr = torch.tensor(profile.logsnr)[torch.isfinite(scale) & (scale > 0)]
    scale = scale[torch.isfinite(scale) & (scale > 0)]
    if len(scale) == 0 or scale.max() < 100 * scale.min():
        return None
    large = logsnr[scale > 0.1 * scale.max()]
    return (
        "The gradient that one drawn image sends into the untrained network spans a factor of "
        f"{_number(scale.max() / scale.min())}: it is largest at logsnr {logsnr[scale.argmax()]:.1f}, and more than a tenth of "
        f"that only from {large.max():.1f} to {large.min():.1f}. Gradient clipping and Adam's averages follow the largest."
    )


def scaled_noise_loss(profile: Profile, objective: Objective) -> str | None:
    """A loss on sigma · noise."""
    names = [name for name, loss in _denoising(objective) if loss.space == SCALED_NOISE]
    if not names:
        return None
    ratio = objective.denoiser.schedule.sigma(_times(profile)[0]) ** 2
    return (
        f"{_quoted(names)}: the squared error of sigma·noise is that of the noise times sigma². At the lowest noise shown "
        f"(logsnr {profile.logsnr[0]:.1f}) a step has {_number(ratio)} of the weight that the noise loss gives it; a weight of "
        "1/sigma² undoes it."
    )


def step_noise_floor(profile: Profile, objective: Objective) -> str | None:
    """The noise of one step: what is known of it, and what no network can know."""
    losses = [loss for _, loss in _denoising(objective) if not isinstance(loss, Increment)]
    if STEP_NOISE not in (objective.denoiser.target, *(loss.space for loss in losses)):
        return None
    known, i = _known(profile, objective), len(profile.t) // 2
    return (
        "Of the variance beta of the noise that one step adds, only a share beta/sigma² follows from z and x0 together: "
        f"{_number(known[i])} at logsnr {profile.logsnr[i]:.1f}. The rest, {_number(1 - known[i])}, is a floor that no network "
        "can remove. step_noise is here the expectation, beta/sigma · noise, so that the floor is not in the loss; its error "
        "is the noise's times beta/sigma."
    )


def increment_floor(profile: Profile, objective: Objective) -> str | None:
    """A loss on the increment itself: the floor is in its value."""
    names = [name for name, loss in _denoising(objective) if isinstance(loss, Increment)]
    if not names:
        return None
    known = _known(profile, objective)
    return (
        f"{_quoted(names)}: of the variance beta of the noise that one step adds, {_number(1 - known.max())} to "
        f"{_number(1 - known.min())}, depending on the level, does not follow even from z and x0 together (1 - beta/sigma²). "
        "That is a floor of this loss that no network can remove, and noise in its gradient. denoising(space=step_noise) has "
        "the same minimum without it."
    )


def amplified_in_x0(profile: Profile, objective: Objective) -> str | None:
    """A noise-like output at high noise."""
    return _amplified(profile, "x0", -1, 1 / _gain(objective.denoiser.target, objective, profile.logsnr[-1]))


def amplified_in_noise(profile: Profile, objective: Objective) -> str | None:
    """An image-like output at low noise."""
    level = profile.logsnr[0]
    squared_ratio = torch.tensor(level).exp() / _gain(objective.denoiser.target, objective, level)
    return _amplified(profile, "the noise", 0, squared_ratio)


def sampler_moves_samples(profile: Profile, objective: Objective) -> str | None:
    """Times that are not uniform."""
    low, high = profile.middle_half
    times = objective.times
    name = type(times).__name__
    if isinstance(times, Uncorrected):
        found = type(times.times).__name__
        what = "as it is now, and will change" if times.learns else "part of the objective"
        return f"The times of {found} are not corrected for: their density, {what}, is in the weights here."
    if times.learns:
        return f"{name} draws more samples where the loss is large, and divides by the density: the objective stays the same."
    if max(profile.importance) <= 1.001 * min(profile.importance):
        return None
    return (
        f"{name} draws half of the timesteps between logsnr {low:.1f} and {high:.1f}. That does not change the objective: the "
        f"loss of each is divided by its density. Weighed so, {profile.effective_share:.1%} of the samples would do as well."
    )


def other_minimum(profile: Profile, objective: Objective) -> str | None:
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


def balanced_later(profile: Profile, objective: Objective) -> str | None:
    """A learned uncertainty, or an average by level, divides by the loss it finds."""
    kinds = (LearnedUncertainty, BalancedLevels)
    names = [name for name, term in objective.terms.items() if isinstance(term.loss, kinds)]
    if not names:
        return None
    return (
        f"{_quoted(names)}: the weights are those at this point of the training; the loss divides by the error that it finds, "
        "so that nothing can be said of a bound."
    )


def _goes_on_changing(objective: Objective) -> bool:
    """Whether the weights are others once something is learned."""
    of_times = isinstance(objective.times, Uncorrected) and objective.times.learns
    return of_times or any(isinstance(term.loss, LearnedUncertainty | BalancedLevels) for term in objective.terms.values())


def not_in_the_numbers(profile: Profile, objective: Objective) -> str | None:
    """Terms without a weight."""
    if not profile.left_out:
        return None
    found = [n for n in profile.left_out if isinstance(objective.terms[n].weight, Multiplier)]
    plain = [n for n in profile.left_out if n not in found]
    parts = [f"{_quoted(plain)} (no weighted squared error of the network)"] if plain else []
    parts += [f"{_quoted(found)} (its factor is found during training)"] if found else []
    return f"Not in the weights and the gradient: {', '.join(parts)}."


CENTRES = {
    "absolute": "the median of each pixel",
    "euclidean": "their geometric median, the image with the least mean distance to them",
    "huber": "between the mean and the median of each pixel",
}

OF_WEIGHTS: tuple[Remark, ...] = (maximum_likelihood, augmented_bound, no_bound, untrained_noise, gradient_span)
OF_CHOICES: tuple[Remark, ...] = (
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


def _times(profile: Profile) -> Tensor:
    return torch.tensor(profile.t, dtype=torch.float64)


def _known(profile: Profile, objective: Objective) -> Tensor:
    """beta/sigma²: the share of the step noise's variance that z and x0 determine, (N,)."""
    schedule, t = objective.denoiser.schedule, _times(profile)
    return forward_step(schedule, t)[1] / schedule.sigma(t) ** 2


def _gain(target: Target, objective: Objective, logsnr: float) -> Tensor:
    return target.gain_at(objective.denoiser.schedule, torch.tensor([logsnr], dtype=torch.float64)).detach()


def _amplified(profile: Profile, what: str, level: int, squared_ratio: Tensor) -> str | None:
    ratio = float(squared_ratio.sqrt())
    if ratio < 10:
        return None
    where = "highest" if level else "lowest"
    return (
        f"At the {where} noise shown (logsnr {profile.logsnr[level]:.1f}) an error in the network's output ({profile.output}) "
        f"is {_number(ratio)} times as large an error in {what}."
    )


def _share(profile: Profile, level: int) -> str:
    return _number(profile.effective[level] / max(profile.effective))


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _number(value: float | Tensor) -> str:
    """Two digits, without an exponent where that is short."""
    value = float(value)
    return f"{value:.0f}" if 100 <= value < 1e5 else f"{value:.2g}"
