"""Averages of the weights that a run keeps on the way, and any other average, made of them afterwards (EDM2)."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xhat.errors import RunError
from xhat.files.tensors import Copied, read_tensors
from xhat.runs.places import AVERAGES
from xhat.runs.weights import read_weights

TRACKS = (0.05, 0.1)
"""Relative widths of the two that are kept (Karras et al. 2024, EDM2, section 3.2)."""
NAME = re.compile(r"step-([0-9]{8,})-width-(0\.[0-9]+)\.safetensors")

Array = npt.NDArray[np.float64]


def power_exponent(width: float) -> float:
    """gamma of the power-function average whose weight profile has this relative standard deviation.

    width² = (gamma + 1) / ((gamma + 2)² (gamma + 3)) (Karras et al. 2024, EDM2, eq. 6 and appendix C).

    Raises:
        RunError: width is not in (0, 0.28], where a solution exists.
    """
    if not 0 < width <= 0.28:
        raise RunError(f"the relative width of an average is 0 (off) or in (0, 0.28], got {width}")
    t = width**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


@dataclass(frozen=True, order=True)
class Kept:
    """An average that a run has kept.

    Attributes:
        step: steps done.
        width: relative.
        path: of its weights file, which is enough to sample from.
    """

    step: int
    width: float
    path: Path


def place_of(run: Path, step: int, width: float) -> Path:
    """Where a run keeps an average."""
    return run / AVERAGES / f"step-{step:08d}-width-{width:g}.safetensors"


def kept_averages(run: Path) -> list[Kept]:
    """What a run has kept, the oldest first; of a step that a kill has left half of, nothing."""
    folder = run / AVERAGES
    named = ((NAME.fullmatch(path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    found = sorted(Kept(int(name.group(1)), float(name.group(2)), path) for name, path in named if name)
    return [one for one in found if sum(other.step == one.step for other in found) == len(TRACKS)]


def inner_products(a: list[tuple[int, float]], b: list[tuple[int, float]]) -> Array:
    """Of weight profiles p(u) = (gamma + 1) u^gamma / step^(gamma + 1) on [0, step], each given as (step, gamma).

    <p_a, p_b> = (gamma_a + 1)(gamma_b + 1) (m / M)^gamma / ((gamma_a + gamma_b + 1) M), with m and M the smaller and the larger
    step and gamma that of the larger (Karras et al. 2024, EDM2, appendix C). In 1/steps.
    """
    (steps_a, gammas_a), (steps_b, gammas_b) = (np.array(x, dtype=float).T[:, :] for x in (a, b))
    ta, ga, tb, gb = steps_a[:, None], gammas_a[:, None], steps_b[None], gammas_b[None]
    least, most, gamma = np.minimum(ta, tb), np.maximum(ta, tb), np.where(ta > tb, ga, gb)
    products: Array = (ga + 1) * (gb + 1) * (least / most) ** gamma / ((ga + gb + 1) * most)
    return products


def coefficients(kept: list[tuple[int, float]], width: float, step: int) -> tuple[Array, float]:
    """Of the averages kept, that which comes nearest to the average of a width after some steps, and how near.

    The coefficients minimise the mean squared difference of the weight profiles (Karras et al. 2024, EDM2, appendix C), here
    among those whose sum is 1, so that weights which do not change are their own average.

    Args:
        kept: (step, relative width) of each.
        width: relative, in (0, 0.28].
        step: steps that the average is of.

    Returns:
        Coefficients, in the order of `kept`; the norm of the difference of the profiles, relative to the profile's own.

    Raises:
        RunError: the width is out of range.
    """
    profiles = [(at, power_exponent(w)) for at, w in kept]
    wanted = [(step, power_exponent(width))]
    n, scale = len(kept), float(step)  # steps as shares of the training, for numbers of size 1
    system, right = np.ones((n + 1, n + 1)), np.ones(n + 1)
    system[:n, :n], system[n, n] = scale * inner_products(profiles, profiles), 0
    right[:n] = scale * inner_products(profiles, wanted)[:, 0]
    found = np.linalg.lstsq(system, right, rcond=None)[0][:n].astype(np.float64)
    own = scale * inner_products(wanted, wanted)[0, 0]
    squared = own - 2 * found @ right[:n] + found @ system[:n, :n] @ found
    return found, float(np.sqrt(max(squared, 0) / own))


def averaged(run: Path, width: float, step: int | None = None) -> tuple[Copied, int, int, float]:
    """The average of a width, made of those that a run has kept up to a step.

    What does not learn, and statistics of a normalisation, are those of that step.

    Args:
        run: the folder.
        width: relative, in (0, 0.28].
        step: one that averages are kept of; None is the last of them.

    Returns:
        The weights file; its step; of how many averages it is made; see `coefficients`.

    Raises:
        RunError: none are kept, of that step none are, or one is damaged.
    """
    known = kept_averages(run)
    if not known:
        raise RunError(f"{run} has kept no averages: train with --averages_every, for example 500")
    step = known[-1].step if step is None else step
    if step not in {one.step for one in known}:
        near = min((one.step for one in known), key=lambda at: abs(at - step))
        raise RunError(f"{run} has kept no averages of step {step:,}: the nearest is --step {near}")
    known = [one for one in known if one.step <= step]
    shares, miss = coefficients([(one.step, one.width) for one in known], width, step)
    sums: dict[str, Tensor] = {}
    for one, share in zip(known, shares, strict=True):
        for name, x in read_weights(one.path).tensors.items():
            if x.is_floating_point():
                sums[name] = sums.get(name, torch.zeros_like(x, dtype=torch.float64)) + share * x.double()
    (metadata, last), other = read_tensors(known[-1].path), read_weights(known[-2].path).tensors if len(known) > 1 else {}
    for name, x in last.items():
        if name not in sums or (name in other and known[-2].step == step and torch.equal(x, other[name])):
            continue  # the same in averages of two widths: it does not learn
        last[name] = sums[name].to(x.dtype)
    return Copied(last, metadata), step, len(known), miss
