"""The common scale for anybody's model and data: error per noise level, bits per dimension, the floor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xhat.bound.estimate import estimate_bound
from xhat.data.batch import Batch
from xhat.data.reading import part
from xhat.data.source import Feed, first_samples, shape_of
from xhat.data.wrap import as_source, from_tensors
from xhat.diffusion.denoiser import Denoiser
from xhat.errors import DataError
from xhat.evaluation.denoising import DenoisingError, reached, summary, x0_errors
from xhat.evaluation.floor import floor_errors
from xhat.evaluation.validation import Validation
from xhat.tensors import device_of, evaluating

MOST, KNOWN, BOUND_SAMPLES = 1000, 10_000, 300
"""Samples: measured, known for the floor, and of the bound."""
MOST_NUMBERS = 50_000_000
"""All values of the known samples together."""
LEAST_FOR_A_BOUND = 10
"""Samples, of which a fifth find where the bound's steps are drawn."""


@torch.no_grad()
def validate(
    denoiser: Denoiser,
    data: Any,
    cond: Mapping[str, Tensor] | None = None,
    *,
    known: Any = None,
    most: int = MOST,
) -> Validation:
    """Measure a denoiser on data that it was not trained on: two of any kind can be compared by what comes out.

    Sample k at level l sees a noise that is a function of (l, k) alone, whatever the model, so that differences between models
    and between checkpoints are paired. Works in anybody's training loop: the model is put into evaluation mode and back.

    Args:
        denoiser: any network in `xhat.Denoiser`, with its own schedule and target.
        data: held-out samples: a tensor, a Dataset, a loader, a data source.
        cond: what the network is told of them, (N, ...) by name, with a tensor of data; others bring it along.
        known: samples of the same distribution, for the floor: those that the model was trained on; held-out ones must not be
            among them.
        most: samples, at most; of more a random choice, the same each time, or a loader's first.

    Raises:
        DataError: no data.
        ValueError: the schedule has fewer than two of the noise levels.
    """
    if not isinstance(denoiser, Denoiser):
        raise DataError(f"validate measures an xhat.Denoiser, got {type(denoiser).__name__}: of an objective its .denoiser")
    if most < 2:
        raise DataError(f"most must be at least 2, got {most}")
    batch = _taken(data, cond, most, device_of(denoiser.net))
    x0, told = batch.x0, batch.cond
    if len(x0) < 2:
        raise DataError(f"a standard error needs at least 2 samples, the data have {len(x0)}")
    if not bool(x0.isfinite().all()):
        raise DataError("the data hold values that are not finite: leave them out, or fill them with numbers")
    without: dict[str, str] = {}
    with evaluating(denoiser):
        levels = reached(denoiser.schedule)
        errors = x0_errors(denoiser, x0, told, levels)
        bound = _bound(denoiser, batch, without)
    above = _above_floor(errors, levels, batch, known, without)
    return Validation(summary(errors, levels), *bound, above, len(x0), without)


def _taken(data: Any, cond: Mapping[str, Tensor] | None, most: int, device: torch.device) -> Batch:
    """Samples of any data, in memory."""
    if cond is None:
        source = as_source(data, held_out=0.0)
    elif isinstance(data, Tensor):
        source = from_tensors(data, cond, held_out=0.0)
    else:
        raise DataError("cond goes with a tensor: a loader or a data source brings its own, as Batch(x0, cond, extra)")
    return first_samples(Feed(source, shape_of(source), device), most)


def _bound(denoiser: Denoiser, batch: Batch, without: dict[str, str]) -> tuple[float | None, float | None]:
    """The variational bound ± its standard error; nothing where it cannot be had."""
    count = min(len(batch.x0), BOUND_SAMPLES)
    pilot = count // 5
    try:
        if count < LEAST_FOR_A_BOUND:
            raise ValueError(f"it takes {LEAST_FOR_A_BOUND} samples, these are {count}")
        measured, aside = (part(batch, rows) for rows in (slice(pilot, count), slice(0, pilot)))
        found = estimate_bound(denoiser, measured.x0, aside.x0, cond=measured.cond, pilot_cond=aside.cond)
    except ValueError as error:
        without["bound"] = str(error)
        return None, None
    return found.bits_per_dim, found.bits_per_dim_se


def _above_floor(
    errors: Tensor, levels: list[float], batch: Batch, known: Any, without: dict[str, str]
) -> DenoisingError | None:
    """What of the errors is above the lower end of the floor; nothing where that cannot be had."""
    if known is None:
        without["floor"] = "pass known=, samples that the model was trained on"
    elif batch.cond:
        without["floor"] = f"nobody knows it for a network that is told {', '.join(batch.cond)}"
    else:
        most = max(2, min(KNOWN, MOST_NUMBERS // batch.x0[0].numel()))
        others = _taken(known, None, most, torch.device("cpu")).x0
        if others.shape[1:] != batch.x0.shape[1:]:
            found, wanted = tuple(others.shape[1:]), tuple(batch.x0.shape[1:])
            raise DataError(f"the known samples have the shape {found}, those that are measured {wanted}")
        floor = floor_errors(others, batch.x0.cpu(), logsnr=levels)
        return summary(errors - floor.lower, levels)
    return None
