"""xhat train."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xhat.commands.parsing import (
    BUDGETS,
    Parser,
    UsageError,
    config_parser,
    differences,
    read_config,
    recipe_path,
    to_config,
    write_config,
)
from xhat.config import Config
from xhat.runs import write_environment
from xhat.training.checkpoint import newest_checkpoint, sweep
from xhat.yaml_files import read_mapping

DESCRIPTION = """Train a model into a run folder.

RECIPE is a preset or a .yaml file; every value of it can be set by its dotted name, for example --optimizer.lr 1e-3,
--network "unet(widths=(64, 128), blocks=(2, 4))" or --terms.smooth.loss "image_loss(total_variation)".
A budget given here (--max_steps, --max_images, --max_minutes) replaces the recipe's.
--init RUN starts from trained weights, of a run or of a diffusers checkpoint: its model and its terms stay, the recipe and the
options change the rest and add terms.
Ctrl-C saves; --resume goes on. With several processes: torchrun --nproc-per-node 2 -m xhat -- train ..."""

CONFIG_FILE = "config.yaml"
MAY_CHANGE = (*BUDGETS, "checkpoint_every", "sample_every", "log_every", "eval_every")


def run(argv: Sequence[str]) -> int:
    """The command."""
    config, folder, resume = resolve(argv)
    return _train(config, folder, folder / CONFIG_FILE, resume)


def resolve(argv: Sequence[str]) -> tuple[Config, Path, bool]:
    """The config that arguments stand for, the run's folder, and whether to resume.

    Raises:
        UsageError, RunError or ExpressionError: one line.
    """
    first = _parser(None).read(argv)
    if not first.run:
        raise UsageError("--run is empty: name a folder")
    folder = Path(first.run)
    stored = folder / CONFIG_FILE
    recipe: Path | None
    if first.recipe is None and first.resume:
        if not stored.exists():
            raise UsageError(f"{folder} holds no run to resume: leave --resume out to start one")
        recipe = stored
    else:
        recipe = recipe_path(first.recipe) if first.recipe is not None else None
    init = first.init or (read_config(recipe).init if recipe is not None and recipe != stored else None)
    values = read_mapping(recipe or recipe_path("mnist")) if recipe is not None or init is None else {}
    config = _config(argv, values) if init is None else _started(argv, values, init)
    if any(first[b] is not None for b in BUDGETS):
        config = replace(config, **{b: first[b] for b in BUDGETS})
    return config, folder, first.resume


def _config(argv: Sequence[str], values: Mapping[str, Any]) -> Config:
    parser = _parser(values)
    return to_config(parser.read(argv), parser)


def _started(argv: Sequence[str], recipe: dict[str, Any], init: str) -> Config:
    """The config of a run that starts from trained weights: theirs, then the recipe's, then the options."""
    from xhat.initial import overlaid, require_model, values_of

    values = values_of(init)
    config = _config(argv, overlaid(values, recipe))
    require_model(config, init, values)
    return config


def _parser(values: Mapping[str, Any] | None) -> Parser:
    parser = config_parser("train", DESCRIPTION, values)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a preset or a .yaml file (default: mnist, or the --init)")
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    return parser


def _train(config: Config, folder: Path, stored: Path, resume: bool) -> int:
    from xhat.data.load import load_parts
    from xhat.training.loop import Trainer

    checkpoint = None
    if stored.exists():
        if not resume:
            raise UsageError(f"{folder} holds a run already: add --resume to go on with it, or choose another --run")
        if changed := differences(read_config(stored), config, MAY_CHANGE):
            raise UsageError(
                f"{folder} holds a run with another config ({'; '.join(changed[:3])}): choose another --run, or leave the "
                "recipe and the options out to go on with its own"
            )
        sweep(folder)
        checkpoint, damaged = newest_checkpoint(folder)
        for line in damaged:
            print(f"xhat train: {line}", file=sys.stderr)
        if checkpoint is None:
            print(f"xhat train: {folder} has no checkpoint yet, starting from step 0", file=sys.stderr)
    elif resume:
        raise UsageError(f"{folder} holds no run to resume: leave --resume out to start one")
    elif folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: --run names a folder")
    data, held_out = load_parts(config.data, config.image_size, config.held_out)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        trainer = Trainer(config, data, folder, checkpoint, held_out)
    except BaseException:
        for path in made:  # nothing was trained: leave nothing behind
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    if trainer.accelerator.is_main_process:
        write_config(config, stored)
        write_environment(folder)
    finished, main = trainer.fit(), trainer.accelerator.is_main_process
    if main and finished:
        print(f"trained {trainer.step} steps; samples, losses.png and metrics.jsonl are in {folder}")
        print(f"next: xhat sample {folder} --n 64 --out {folder / 'samples.npz'}")
    elif main:
        print(f"stopped and saved at step {trainer.step}; go on with: xhat train --run {folder} --resume")
    return 0 if finished else 130
