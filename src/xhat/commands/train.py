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
from xhat.config.config import Config
from xhat.config.data import Data, build_data
from xhat.config.options import BUDGETS, MAY_CHANGE
from xhat.config.origins import needed_by
from xhat.config.parsing import read_config, to_config, write_config
from xhat.config.use import used_files
from xhat.data.shape import DataShape
from xhat.errors import DataError, DataNotFoundError, UsageError
from xhat.files import sweep
from xhat.objective.objective import Objective
from xhat.runs.checkpoint import Checkpoint, newest_checkpoint
from xhat.runs.environment import write_environment
from xhat.runs.initial import load_into
from xhat.runs.lock import main_process, reserved
from xhat.runs.objects import OBJECTS
from xhat.runs.recipe import CONFIG_FILE, find_recipe
from xhat.runs.used import keep_used, require_used, used_by
from xhat.training.learning_rate import rate_jump

if TYPE_CHECKING:
    from xhat.training.setup import Setup

DESCRIPTION = """Train a model into a run folder.

RECIPE is a preset or a .yaml file; every value of it can be set by its dotted name, for example --optimizer.lr 1e-3,
--network "unet(widths=(64, 128), blocks=(2, 4))" or --terms.smooth.loss "image_loss(total_variation)".
A budget given here (--max_steps, --max_images, --max_minutes) replaces the recipe's.
--init RUN starts from trained weights, of a run or of a diffusers checkpoint: its model and its terms stay, the recipe and the
options change the rest and add terms.
--use FILE.py brings networks, penalties, data sources and other parts of your own: names in all of these expressions.
Ctrl-C saves; --resume resumes training. With several processes: torchrun --nproc-per-node 2 -m xhat -- train ..."""

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
    """

    config: Config
    folder: Path
    resume: bool
    unchosen: Mapping[str, Any]


def run(argv: Sequence[str]) -> int:
    """Train a model into a run folder, or resume its training.

    Args:
        argv: what follows `xhat train`.

    Returns:
        0 once the budget is spent, 130 after Ctrl-C.

    Raises:
        XhatError: one line.
    """
    asked = resolve(argv)
    folder, stored = asked.folder, asked.folder / CONFIG_FILE
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: --run names a folder")
    if (folder / OBJECTS).exists():
        raise UsageError(f"{folder} holds a run of xhat.fit: resume it in Python, or choose another --run")
    if asked.resume and not stored.exists():
        raise UsageError(NOTHING_TO_RESUME.format(folder))
    with reserved(folder, "training in", "--run"):
        return _train(asked, stored)


def resolve(argv: Sequence[str]) -> Resolved:
    """The config that arguments stand for, and where it comes from.

    Raises:
        UsageError, RunError, YamlError or ConfigError: one line.
    """
    first = _parser(None).read(argv)
    if not first.run:
        raise UsageError("--run is empty: name a folder")
    folder, name = Path(first.run), first.recipe
    if name is None and first.resume:
        if not (folder / CONFIG_FILE).exists():
            raise UsageError(NOTHING_TO_RESUME.format(folder))
        name = str(folder / CONFIG_FILE)
    recipe = find_recipe(name, first.init, folder)
    parser = _parser(recipe.values)
    config = to_config(parser.read(argv), parser)
    recipe.require_model(config)
    if any(first[key] is not None for key in BUDGETS):
        config = replace(config, **{key: first[key] for key in BUDGETS})
    return Resolved(config, folder, first.resume, recipe.unchosen)


def _parser(values: Mapping[str, Any] | None) -> CommandParser:
    parser = config_parser("train", DESCRIPTION, values)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a preset or a .yaml file (default: mnist, or the --init)")
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="resume training from the newest checkpoint of the run")
    return parser


def _train(asked: Resolved, stored: Path) -> int:
    from xhat.training.setup import set_up

    config, folder = asked.config, asked.folder
    before = read_config(stored) if stored.exists() else None
    if before is not None:
        require_used(used_by(folder), folder)
    checkpoint = None if before is None else _checkpoint(asked, before)
    data = _load(config, asked.resume)
    objective = new_objective(config, data.shape, fresh=checkpoint is None)
    setup = set_up(objective, data.train, config, held_out=data.held_out, checkpoint=checkpoint, config=config)
    setup.accelerator.wait_for_everyone()  # all have seen that there was no run before there is one
    if main_process():
        write_config(config, stored)
        write_environment(folder)
        keep_used(folder, needed_by(config))
        say_what_is_trained_on(config, data)
        if before is None:
            lines = without_effect(config, asked.unchosen, setup, data)
        else:
            lines = [jump] if (jump := rate_jump(before, config, setup.state.step, setup.state.seconds)) else []
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


def _checkpoint(asked: Resolved, before: Config) -> Checkpoint | None:
    """Where a run goes on, if it has come so far.

    Raises:
        UsageError: it is not to go on, or would go on as another run.
    """
    folder = asked.folder
    if not asked.resume:
        raise UsageError(f"{folder} holds a run already: add --resume to resume training, or choose another --run")
    if changed := differences(before, asked.config, MAY_MOVE):
        raise UsageError(
            f"{folder} holds a run with another config ({'; '.join(changed[:3])}): choose another --run, or leave the "
            "recipe and the options out to go on with its own"
        )
    sweep(folder)
    checkpoint, damaged = newest_checkpoint(folder)
    lines = [f"xhat train: {line}" for line in damaged]
    if checkpoint is None:
        lines += [f"xhat train: {folder} has no checkpoint yet, starting from step 0"]
    for line in lines if main_process() else []:
        say(line)
    return checkpoint


def _load(config: Config, resume: bool) -> Data:
    try:
        return build_data(config)
    except DataNotFoundError:
        if resume:
            raise DataError(f'data "{config.data}" does not exist: if it moved, name its new place with --data') from None
        raise


def _fit(setup: "Setup", run: Path) -> int:
    from xhat.training.display import Display
    from xhat.training.train import train

    finished, main = train(setup, run, Display(console(stderr=True), say)), main_process()
    use = "".join(f" --use {shlex.quote(str(file.path))}" for file in used_files())
    folder, samples = shlex.quote(str(run)), shlex.quote(str(run / "samples.npz"))
    if main and finished:
        print(f"trained {setup.state.step} steps; samples, losses.png and metrics.jsonl are in {folder}")
        print(f"next: xhat sample {folder} --n 64 --out {samples}{use}")
    elif main:
        print(f"stopped and saved at step {setup.state.step}; resume training with: xhat train --run {folder} --resume{use}")
    return 0 if finished else 130


def say_what_is_trained_on(config: Config, data: Data) -> None:
    """What was noticed while reading the images, and one line about them; or a line about a user's own source."""
    from xhat.data.summary import summary, summary_of_source

    if data.images is None:
        say(summary_of_source(config.data, data.train, data.held_out, data.shape))
        return
    train, held_out = data.images
    for line in train.found.notes:
        note(line)
    used = bool(config.labels) and train.labels is not None
    say(summary(train, held_out, used, wanted=bool(config.labels)))
