"""What xhat train does."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xhat.commands.actions.no_effect import without_effect
from xhat.commands.terminal import console, note, say
from xhat.commands.train import Resolved
from xhat.config.build import build_denoiser, build_objective
from xhat.config.changes import differences
from xhat.config.config import Config, to_values
from xhat.config.data import Data, build_data
from xhat.config.options import MAY_CHANGE
from xhat.config.origins import needed_by
from xhat.config.parsing import write_config
from xhat.config.use import used_files
from xhat.data.shape import DataShape
from xhat.distributed import main_process
from xhat.errors import DataError, DataNotFoundError, UsageError
from xhat.files.atomic import sweep
from xhat.objective.objective import Objective
from xhat.runs.before import require_unedited, used_in
from xhat.runs.checkpoint import Checkpoint, newest_checkpoint, set_aside
from xhat.runs.environment import write_environment
from xhat.runs.initial import load_into
from xhat.runs.lock import reserved
from xhat.runs.places import CONFIG_FILE, require_new
from xhat.runs.used import keep_used, require_used, used_by, values_of_used
from xhat.training.learning_rate import rate_jump
from xhat.training.stop import heard_from_here_on

if TYPE_CHECKING:
    from xhat.training.setup import Setup

MAY_MOVE = (*MAY_CHANGE, "data")
"""Of the data the images must stay the same, wherever they are: the checkpoint knows their checksum."""


def act(asked: Resolved) -> int:
    """Train a model into a run folder, or resume its training.

    Args:
        asked: what the arguments of `xhat train` stand for.

    Returns:
        0 once the budget is spent, 128 + the number of the signal that asked to stop: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        XhatError: one line.
    """
    with reserved(asked.folder, "training in", "--run"):
        return _train(asked)


def _train(asked: Resolved) -> int:
    from xhat.training.setup import set_up

    config, folder, before = asked.config, asked.folder, asked.before
    checkpoint, damaged = (None, []) if before is None else _checkpoint(asked, before)
    if before is None:
        require_new(folder, "--resume")
    data = _load(config, asked.resume)
    objective = new_objective(config, data.shape, fresh=checkpoint is None)
    about = {"config": to_values(config), "used": values_of_used(needed_by(config))}
    setup = set_up(objective, data.train, config, held_out=data.held_out, checkpoint=checkpoint, config=config, about=about)
    setup.accelerator.wait_for_everyone()  # all have seen that there was no run before there is one
    with heard_from_here_on():
        if main_process():
            write_config(config, folder / CONFIG_FILE)  # the first file of a run: without it, nobody takes the others for one
            write_environment(folder)
            keep_used(folder, needed_by(config))
            say_what_is_trained_on(config, data)
            if before is None:
                lines = without_effect(config, asked.unchosen, setup, data)
            else:
                jump = rate_jump(before, config, setup.state.step, setup.state.seconds)
                lines = [*set_aside(damaged), *([jump] if jump else [])]
            for line in lines:
                note(line)
        return _fit(setup, folder)


def new_objective(config: Config, shape: DataShape, *, fresh: bool) -> Objective:
    """The objective of a config, with its initial weights; a run that goes on has its own."""
    torch.manual_seed(config.seed)
    denoiser = build_denoiser(config, shape)
    if config.init is not None and fresh:
        load_into(denoiser, config.init, shape)
    return build_objective(config, denoiser)


def _checkpoint(asked: Resolved, before: Config) -> tuple[Checkpoint | None, list[Path]]:
    """Where a run goes on, if it has come so far; and newer checkpoints, which are damaged.

    Raises:
        UsageError: it would go on as another run.
        RunError: all checkpoints are damaged, or the run's own config was edited.
        OSError: one cannot be read.
    """
    folder = asked.folder
    if changed := differences(before, asked.config, MAY_MOVE):
        raise UsageError(
            f"{folder} holds a run with another config ({'; '.join(changed[:3])}): choose another --run, or leave the "
            "recipe and the options out to go on with its own"
        )
    checkpoint, damaged = newest_checkpoint(folder)
    if checkpoint is None:
        require_used(used_by(folder), folder)
        if main_process():
            say(f"xhat train: {folder} has no checkpoint yet, starting from step 0")
    else:
        require_used(used_in(checkpoint) or used_by(folder), folder)
        require_unedited(checkpoint, before, MAY_MOVE)
    sweep(folder)
    return checkpoint, damaged


def _load(config: Config, resume: bool) -> Data:
    try:
        return build_data(config, say=say)
    except DataNotFoundError:
        if resume:
            raise DataError(f'data "{config.data}" does not exist: if it moved, name its new place with --data') from None
        raise


def _fit(setup: "Setup", run: Path) -> int:
    from xhat.training.display import Display
    from xhat.training.train import train

    asked, main = train(setup, run, Display(console(stderr=True), say)), main_process()
    use = "".join(f" --use {shlex.quote(str(file.path))}" for file in used_files())
    name = "samples.npz" if setup.shape.units is None else "samples.npy"
    folder, samples = shlex.quote(str(run)), shlex.quote(str(run / name))
    if main and not asked:
        print(f"trained {setup.state.step} steps; samples, losses.png and metrics.jsonl are in {folder}")
        told = '--prompt "..."' if setup.state.objective.denoiser.decode is not None else "--n 64"
        print(f"next: xhat sample {folder} {told} --out {samples}{use}")
    elif main:
        print(f"stopped and saved at step {setup.state.step}; resume training with: xhat train --run {folder} --resume{use}")
    return 128 + asked if asked else 0


def say_what_is_trained_on(config: Config, data: Data) -> None:
    """What was noticed while reading the images, and one line about them; or a line about a user's own source."""
    from xhat.data.summary import notes_of, summary, summary_of_source

    if data.images is None:
        for line in notes_of(data.train):
            note(line)
        say(summary_of_source(config.data, data.train, data.held_out, data.shape))
        return
    train, held_out = data.images
    for line in train.found.notes:
        note(line)
    used = bool(config.labels) and train.labels is not None
    say(summary(train, held_out, used, wanted=bool(config.labels)))
