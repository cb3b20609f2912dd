"""What a run leaves in its folder beside its states: pictures; and what a resume makes good."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xhat.config.build import build_sampling
from xhat.distributed import from_main
from xhat.errors import RunError, UsageError
from xhat.evaluation.pictures import grid_columns, is_shown, save_grid, save_losses, shown
from xhat.files.atomic import sweep
from xhat.files.ours import is_ours
from xhat.runs.averages import kept_averages
from xhat.runs.checkpoint import drop_old
from xhat.runs.metrics import read_metrics
from xhat.runs.places import AVERAGES
from xhat.runs.weights import read_weights
from xhat.tensors import evaluating
from xhat.training.saving import weights_of
from xhat.training.setup import PICTURE_IMAGES, PICTURE_LATENTS, Setup

PICTURE_STEPS, EARLY = 20, 5
SAMPLES, NAME = "samples", re.compile(r"step-([0-9]{8,})\.png")
MOST_PICTURES = 64
"""Of samples; a longer run keeps every second, fourth, ... of them, so that they always show all of it."""
LOSSES = "losses.png"


def complete(setup: Setup, run: Path, *, ended: bool) -> None:
    """Make what belongs to the state but is not there, or is of another one: a kill may come between any two files.

    Args:
        setup: where the run is.
        run: its folder.
        ended: whether the budget is spent.
    """
    if setup.accelerator.is_main_process:
        sweep(run / SAMPLES)
        sweep(run / AVERAGES)
        drop_old(run)
        for kept in kept_averages(run):
            if kept.step > setup.state.step:  # of steps that are done again
                kept.path.unlink()
    if not setup.state.step:
        return
    main = setup.accelerator.is_main_process  # the others need not read the weights, too
    weights, picture = from_main((main and not _has_weights(setup, run), not _path(setup, run).exists()))
    if weights:
        for write in weights_of(setup, run):
            write()
    if picture and picture_due(setup, ended=ended):
        save_picture(setup, run)


def _has_weights(setup: Setup, run: Path) -> bool:
    named = None if setup.config is None else setup.config.data
    try:
        found = read_weights(run)
    except RunError:
        return False
    return found.data == named and found.step == setup.state.step


def picture_due(setup: Setup, *, ended: bool) -> bool:
    """Whether there is to be a picture of samples after this step."""
    return is_shown(setup.shape, setup.state.objective.denoiser) and (
        ended or of_a_picture(setup.state.step, setup.options.sample_every)
    )


def of_a_picture(step: int, every: int) -> bool:
    """Whether there is a picture after this step: every so many, and the first after a fifth of these."""
    return step % every == 0 or step == every // EARLY


def save_picture(setup: Setup, run: Path) -> Path | None:
    """A grid of samples, drawn in few steps, by each process some; None on one that does not write, or where somebody else's
    file is.
    """
    columns = grid_columns(setup.shape.classes)
    how = replace(setup.options.sampling, steps=min(setup.options.sampling.steps, PICTURE_STEPS))
    model = setup.state.averaged()
    sampling = build_sampling(how, model.schedule)
    count = PICTURE_IMAGES // columns * columns if model.decode is None else PICTURE_LATENTS
    with evaluating(model):
        samples, _ = sampling.generate(model, setup.shape, count, cond=setup.told, shares=setup.shares)
        images = shown(samples, setup.shape, model, setup.shares)
    if not setup.accelerator.is_main_process:
        return None
    path = _path(setup, run)
    path.parent.mkdir(exist_ok=True)
    if not _drawn(path, lambda: save_grid(images, path, columns)):
        return None
    _thin_out(path.parent, setup.state.step, setup.options.sample_every)
    return path


def save_loss_curves(run: Path) -> None:
    """The picture of the metrics so far."""
    rows: list[Mapping[str, Any]] = read_metrics(run)
    _drawn(run / LOSSES, lambda: save_losses(rows, run / LOSSES))


def _drawn(path: Path, draw: Callable[[], None]) -> bool:
    """Whether a picture was written; a warning where a file of somebody else's has its name, which stays."""
    try:
        draw()
    except UsageError:
        warnings.warn(f"{path} was not drawn by xhat, and stays: move it away to have the run's own there", stacklevel=3)
        return False
    return True


def _path(setup: Setup, run: Path) -> Path:
    return run / SAMPLES / f"step-{setup.state.step:08d}.png"


def _thin_out(folder: Path, step: int, every: int) -> None:
    """Remove pictures between those that are worth keeping; the newest, and whatever is not ours, stays."""
    stride = every
    while step > MOST_PICTURES * stride:
        stride *= 2
    for path in folder.iterdir() if stride > every else ():
        name = NAME.fullmatch(path.name)
        if name and int(name.group(1)) < step and int(name.group(1)) % stride and is_ours(path):
            path.unlink()
