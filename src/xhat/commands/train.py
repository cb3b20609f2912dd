"""The arguments of xhat train."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from xhat.commands.parsing import CommandParser, config_parser
from xhat.commands.signals import as_outside
from xhat.config.config import Config, to_values
from xhat.config.options import BUDGETS
from xhat.config.parsing import to_config
from xhat.errors import UsageError
from xhat.runs.places import OBJECTS, require_new
from xhat.runs.recipe import Recipe, find_recipe

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


def read(argv: Sequence[str]) -> Resolved:
    """The config that arguments stand for, and where it comes from.

    Args:
        argv: what follows `xhat train`.

    Raises:
        UsageError, RunError, YamlError or ConfigError: one line.
    """
    first = _parser(None).read(argv)
    if not first.run:
        raise UsageError("--run is empty: name a folder")
    folder, name = Path(first.run), first.recipe
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: --run names a folder")
    if (folder / OBJECTS).exists():
        raise UsageError(f"{folder} holds a run of xhat.fit: resume it in Python, or choose another --run")
    before = _before(folder) if first.resume else None
    if before is None:
        require_new(folder, "--resume")
    if first.init:
        with as_outside():
            import xhat.runs.initial  # noqa: F401  # which finding the recipe will need
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


def _before(folder: Path) -> Config:
    """The config of the run that goes on.

    Raises:
        UsageError or RunError: there is none, or it is damaged.
    """
    with as_outside():
        from xhat.runs.before import config_before

    found = config_before(folder)
    if found is None:
        raise UsageError(NOTHING_TO_RESUME.format(folder))
    return found


def _parser(values: Mapping[str, Any] | None) -> CommandParser:
    parser = config_parser("train", DESCRIPTION, values)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a preset or a .yaml file (default: mnist, or the --init)")
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="resume training from the newest checkpoint of the run")
    return parser
