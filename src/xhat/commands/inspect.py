"""The arguments of xhat inspect."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xhat.commands.parsing import CommandParser, add_force, config_parser
from xhat.commands.signals import as_outside
from xhat.config.config import Config, to_values
from xhat.config.parsing import to_config
from xhat.config.presets import preset_names
from xhat.errors import UsageError
from xhat.files.ours import require_free
from xhat.runs.recipe import find_recipe, read_run_config

DESCRIPTION = """Show what a preset, a config or a run optimizes, before training: the five choices, the weight of each noise
level in each space and relative to the variational bound (Kingma & Gao 2023), the timestep sampling distribution, how large the
gradients are, and in plain words what may surprise you about it.

With a second one, what differs between the two. Values can be changed by their dotted names, as for xhat train; with two
recipes they are changed in both. Writes a picture. If there are image losses, time and memory of a training step
with each of them are measured on one batch."""


class Asked(NamedTuple):
    """What to inspect.

    Attributes:
        configs: one or two, with the names that they were given by.
        picture: where the picture goes.
        force: whether it may take the place of a file.
        json: whether to print one JSON object.
        use: files of a user's own parts.
    """

    configs: list[tuple[str, Config]]
    picture: Path
    force: bool
    json: bool
    use: Sequence[str]


def read(argv: Sequence[str]) -> Asked:
    """What to inspect, and where its picture goes.

    Args:
        argv: what follows `xhat inspect`.

    Raises:
        XhatError: one line.
    """
    given = _parser(None).read(argv)
    if given.init:
        with as_outside():
            import xhat.runs.initial  # noqa: F401  # which finding the recipe will need
    recipes = [r for r in (given.recipe, given.other) if r is not None]
    if not recipes and not given.init:
        raise UsageError("name what to inspect: a preset, a .yaml file, the folder of a run, or --init and a pipeline")
    recipes = recipes or [given.init]
    configs = [(recipe, _config(recipe if given.recipe else None, given.init, argv)) for recipe in recipes]
    picture = Path(given.picture or "-".join([*(Path(r).resolve().stem for r in recipes), "weighting.png"]))
    if not picture.parent.is_dir():
        raise UsageError(f"--picture {picture}: the folder {picture.parent} does not exist")
    require_free(picture, force=given.force, ours=True)
    return Asked(configs, picture, given.force, given.json, given.use)


def _parser(values: Mapping[str, Any] | None) -> CommandParser:
    parser = config_parser("inspect", DESCRIPTION, values)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", default=None, help="a preset, a .yaml file, or a run's folder")
    parser.add_argument("other", metavar="OTHER", nargs="?", default=None, help="another one to compare it with")
    parser.add_argument("--picture", type=str | None, default=None, metavar="FILE.png", help="where the picture goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_force(parser, "a picture that is there already")
    return parser


def _config(recipe: str | None, init: str | None, argv: Sequence[str]) -> Config:
    stored = None if recipe is None or recipe in preset_names() else Path(recipe) / "config.yaml"
    if stored is None or not stored.is_file():
        found = find_recipe(recipe, init)
        parser = _parser(found.values)
        config = to_config(parser.read(argv), parser)
        found.require_model(config)
        return config
    with as_outside():
        from xhat.runs.used import require_used, used_by

    require_used(used_by(stored.parent), stored.parent)
    parser = _parser(to_values(read_run_config(stored.parent)))
    return to_config(parser.read(argv), parser)
