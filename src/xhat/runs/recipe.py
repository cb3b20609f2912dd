"""What the config of a run is made of: a recipe, the starting weights it is trained from, and changes."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xhat.config.changes import overlaid, with_changes
from xhat.config.config import Config, to_values
from xhat.config.options import BUDGETS
from xhat.config.parsing import config_of, names_every_key, read_config, read_recipe, recipe_path, was_edited
from xhat.config.presets import preset_names
from xhat.errors import ConfigError, RunError
from xhat.runs.places import CONFIG_FILE

DEMO = "mnist"


def read_run_config(run: Path) -> Config:
    """The config of a run's folder; a warning says if somebody has edited it.

    Raises:
        RunError: it is damaged.
        OSError: it cannot be read.
    """
    path = run / CONFIG_FILE
    try:
        config = read_config(path)
    except ConfigError as error:
        why = str(error).removeprefix(f"{path} ")
        raise RunError(f"{path} cannot be used ({why}): remove it, and --resume takes the config of the checkpoint") from None
    if was_edited(path):
        warnings.warn(f"{path} was edited, or damaged, since xhat wrote it", stacklevel=2)
    return config


@dataclass(frozen=True)
class Recipe:
    """What a config is before it is changed.

    Attributes:
        values: of the recipe, laid over those of the starting weights.
        unchosen: what they would be without the user: those of a preset and of the starting weights.
        init: the starting weights, whose model must stay; None if there are none, or they have done their part.
        of_weights: the values that these bring.
    """

    values: dict[str, Any]
    unchosen: dict[str, Any]
    init: str | None
    of_weights: dict[str, Any]

    def require_model(self, config: Config) -> None:
        """Refuse a config that reads the starting weights as something else than they were trained for.

        Raises:
            RunError: names the first value that differs, and the way out.
        """
        if self.init is not None:
            from xhat.runs.initial import require_model

            require_model(config, self.init, self.of_weights)


def find_recipe(name: str | None, init: Any = None, run: Path | None = None) -> Recipe:
    """The recipe of a name, with what its starting weights bring along.

    A config that names every key, as that of a run does, is taken as it is; another is laid over the config of the weights that
    it starts from, so that a recipe may hold no more than a term.

    Args:
        name: a preset or a .yaml file; None is the demo, or the config of the starting weights alone.
        init: starting weights; by default those that the recipe names.
        run: folder of the run. With its own config as recipe, the starting weights have done their part.

    Raises:
        UsageError, RunError or YamlError: there is no such recipe, or it starts from nothing that can be started from.
    """
    values = {} if name is None and init else read_recipe(recipe_path(name or DEMO))
    own = name is not None and run is not None and Path(name) == run / CONFIG_FILE
    asked = init or (None if own else values.get("init"))
    shipped = values if name is None or name in preset_names() else {}
    if not isinstance(asked, str):  # what it is instead is refused with the other values
        return Recipe(values, shipped, None, {})
    from xhat.runs.initial import values_of  # with it comes torch, of which a preset needs none

    base = values_of(asked)
    laid = values if names_every_key(values) and not init else overlaid(base, values)
    return Recipe(laid, {**base, **shipped}, asked, base)


def config_with(name: str | None, changes: Mapping[str, Any]) -> Config:
    """The config of a recipe with changes; a budget among them replaces all of the recipe's.

    Args:
        name: a preset or a .yaml file; None is the demo, or the config of the starting weights among the changes.
        changes: dotted key -> value; see `with_changes`.

    Raises:
        UsageError, RunError, YamlError or ConfigError: one line.
    """
    recipe = find_recipe(name, changes.get("init"))
    config = config_of(with_changes(to_values(config_of(recipe.values)), with_budget(changes)))
    recipe.require_model(config)
    return config


def with_budget(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes whose budget, if they have one, is all the budget there is."""
    budget = {key: changes.get(key) for key in BUDGETS}
    return {**changes, **budget} if any(value is not None for value in budget.values()) else dict(changes)
