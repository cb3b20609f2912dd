"""xhat train."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xhat.commands.no_effect import without_effect
from xhat.commands.parsing import CommandParser, config_parser
from xhat.commands.terminal import console, note, say
from xhat.config.build import build_denoiser, build_objective
from xhat.config.changes import differences
from xhat.config.config import Config, to_values
from xhat.config.data import Data, build_data
from xhat.config.options import BUDGETS, MAY_CHANGE
from xhat.config.origins import needed_by
from xhat.config.parsing import to_config, write_config
from xhat.config.use import used_files
from xhat.data.shape import DataShape
from xhat.distributed import main_process
from xhat.errors import DataError, DataNotFoundError, UsageError
from xhat.files.atomic import sweep
from xhat.objective.objective import Objective
from xhat.runs.before import config_before, require_new, require_unedited, used_in
from xhat.runs.checkpoint import Checkpoint, newest_checkpoint, set_aside
from xhat.runs.environment import write_environment
from xhat.runs.initial import load_into
from xhat.runs.lock import reserved
from xhat.runs.objects import OBJECTS
from xhat.runs.recipe import CONFIG_FILE, Recipe, find_recipe
from xhat.runs.used import keep_used, require_used, used_by, values_of_used
from xhat.training.learning_rate import rate_jump
from xhat.training.stop import heard_from_here_on

if TYPE_CHECKING:
    from xhat.training.setup import Setup

DESCRIPTION = """Train a model into a run folder.

RECIPE is a preset or a .yaml file; every value of it can be set by its dotted name, for example --optimizer.lr 1e-3,
--network "unet(widths=(64, 128), blocks=(2, 4))" or --terms.smooth.loss "image_loss(total_variation)".
A budget given here (--max_steps, --max_images, --max_minutes) replaces the recipe's.
--init RUN starts from trained weights, of a run or of a diffusers checkpoint: its model and its terms stay, the recipe and the
options change the rest and add terms.
--use FILE.py brings networks, penalties, data sources and other parts of your own: names in all of these expressions.
Ctrl-C, SIGTERM and SIGHUP save; --resume resumes training.
With several processes: torchrun --nproc-per-node 2 -m xhat -- train ..."""

NOTHING_TO_RESUME = "{} holds no run to resume: leave --resume out to start one"
MAY_MOVE = (*MAY_CHANGE, "data")
"""Of the data the images must stay the same, wherever they are: the checkpoint knows their checksum."""


class Resolved(NamedTuple):
    """What arguments stand for.

    Attributes:
        config: of the run.
        folder: of the run.
        resume: whether to resume its training.
        unchosen: what the values would be without the user.
        before: the run's config so far; None of a new one.
    """

    config: Config
    folder: Path
    resume: bool
    unchosen: Mapping[str, Any]
    before: Config | None


def run(argv: Sequence[str]) -> int:
    """Train a model into a run folder, or resume its training.

    Args:
        argv: what follows `xhat train`.

    Returns:
        0 once the budget is spent, 128 + the number of the signal that asked to stop: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        XhatError: one line.
    """
    asked = resolve(argv)
    folder = asked.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: --run names a folder")
    if asked.before is None:
        require_new(folder, "--resume")  # before it is reserved: who will be refused keeps nobody else out
    with reserved(folder, "training in", "--run"):
        return _train(asked)


def resolve(argv: Sequence[str]) -> Resolved:
    """The config that arguments stand for, and where it comes from.

    Raises:
        UsageError, RunError, YamlError or ConfigError: one line.
    """
    first = _parser(None).read(argv)
    if not first.run:
        raise UsageError("--run is empty: name a folder")
    folder, name = Path(first.run), first.recipe
    if (folder / OBJECTS).exists():
        raise UsageError(f"{folder} holds a run of xhat.fit: resume it in Python, or choose another --run")
    before = config_before(folder) if first.resume else None
    if first.resume and before is None:
        raise UsageError(NOTHING_TO_RESUME.format(folder))
    if before is not None and name is None:
        recipe = Recipe(to_values(before), {}, None, {})
    else:
        recipe = find_recipe(name, first.init, folder)
    parser = _parser(recipe.values)
    config = to_config(parser.read(argv), parser)
    recipe.require_model(config)
    if any(first[key] is not None for key in BUDGETS):
        config = replace(config, **{key: first[key] for key in BUDGETS})
    return Resolved(config, folder, first.resume, recipe.unchosen, before)


def _parser(values: Mapping[str, Any] | None) -> CommandParser:
    parser = config_parser("train", DESCRIPTION, values)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a preset or a .yaml file (default: mnist, or the --init)")
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="resume training from the newest checkpoint of the run")
    return parser


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
