"""xhat train."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xhat.commands.no_effect import without_effect
from xhat.commands.parsing import CommandParser, config_parser
from xhat.commands.terminal import console, note, say
from xhat.config.changes import differences
from xhat.config.config import Config
from xhat.config.parsing import read_config, to_config, write_config
from xhat.data.images import Images
from xhat.errors import DataError, DataNotFoundError, UsageError
from xhat.files import sweep
from xhat.runs.checkpoint import Checkpoint, newest_checkpoint
from xhat.runs.environment import write_environment
from xhat.runs.lock import main_process, reserved
from xhat.runs.recipe import BUDGETS, CONFIG_FILE, find_recipe
from xhat.training.learning_rate import rate_jump

if TYPE_CHECKING:
    from xhat.training.setup import Setup

DESCRIPTION = """Train a model into a run folder.

RECIPE is a preset or a .yaml file; every value of it can be set by its dotted name, for example --optimizer.lr 1e-3,
--network "unet(widths=(64, 128), blocks=(2, 4))" or --terms.smooth.loss "image_loss(total_variation)".
A budget given here (--max_steps, --max_images, --max_minutes) replaces the recipe's.
--init RUN starts from trained weights, of a run or of a diffusers checkpoint: its model and its terms stay, the recipe and the
options change the rest and add terms.
Ctrl-C saves; --resume resumes training. With several processes: torchrun --nproc-per-node 2 -m xhat -- train ..."""

NOTHING_TO_RESUME = "{} holds no run to resume: leave --resume out to start one"
MAY_CHANGE = (*BUDGETS, "data", "checkpoint_every", "sample_every", "log_every", "eval_every")
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
    checkpoint = None if before is None else _checkpoint(asked, before)
    data, held_out = _load(config, asked.resume)
    setup = set_up(config, data, checkpoint, held_out)
    setup.accelerator.wait_for_everyone()  # all have seen that there was no run before there is one
    if main_process():
        write_config(config, stored)
        write_environment(folder)
        say_what_is_trained_on(config, data, held_out)
        if before is None:
            lines = without_effect(config, asked.unchosen, setup, held_out)
        else:
            lines = [jump] if (jump := rate_jump(before, config, setup.state.step, setup.state.seconds)) else []
        for line in lines:
            note(line)
    return _fit(setup, folder)


def _checkpoint(asked: Resolved, before: Config) -> Checkpoint | None:
    """Where a run goes on, if it has come so far.

    Raises:
        UsageError: it is not to go on, or would go on as another run.
    """
    folder = asked.folder
    if not asked.resume:
        raise UsageError(f"{folder} holds a run already: add --resume to resume training, or choose another --run")
    if changed := differences(before, asked.config, MAY_CHANGE):
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


def _load(config: Config, resume: bool) -> tuple[Images, Images | None]:
    from xhat.data.parts import load_parts

    try:
        return load_parts(config.data, config.image_size, config.held_out)
    except DataNotFoundError:
        if resume:
            raise DataError(f'data "{config.data}" does not exist: if it moved, name its new place with --data') from None
        raise


def _fit(setup: "Setup", run: Path) -> int:
    from xhat.training.display import Display
    from xhat.training.fit import fit

    finished, main = fit(setup, run, Display(console(stderr=True), say)), main_process()
    folder, samples = shlex.quote(str(run)), shlex.quote(str(run / "samples.npz"))
    if main and finished:
        print(f"trained {setup.state.step} steps; samples, losses.png and metrics.jsonl are in {folder}")
        print(f"next: xhat sample {folder} --n 64 --out {samples}")
    elif main:
        print(f"stopped and saved at step {setup.state.step}; resume training with: xhat train --run {folder} --resume")
    return 0 if finished else 130


def say_what_is_trained_on(config: Config, data: Images, held_out: Images | None) -> None:
    """What was noticed while reading the images, and one line about them."""
    from xhat.data.summary import summary

    for line in data.found.notes:
        note(line)
    used = bool(config.labels) and data.labels is not None
    say(summary(data, held_out, used, wanted=bool(config.labels)))
