"""Models of diffusers by family, a file each: a new one is found by being here."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from xhat.diffusion.calling import unwrapped
from xhat.errors import RunError
from xhat.pipelines.families.base import Family


def family_of(model: Any) -> type[Family]:
    """The family of a model, by the name of its class or of one that it is derived from.

    Raises:
        RunError: none knows it.
    """
    known = families()
    for kind in type(unwrapped(model)).__mro__:
        if kind.__name__ in known:
            return known[kind.__name__]
    raise RunError(
        f"{type(unwrapped(model)).__name__} is of no family that xhat knows ({', '.join(sorted(known))}): wrap it in a module "
        "whose forward(z, t, **cond) returns the prediction, and give that to xhat.Denoiser with its schedule and target"
    )


def families() -> dict[str, type[Family]]:
    """The families, by the names of their models' classes; those of your own too."""
    _import_all()
    found, todo = dict[str, type[Family]](), [Family]
    while todo:
        kind = todo.pop()
        found |= dict.fromkeys(vars(kind).get("models", ()), kind)
        todo += kind.__subclasses__()
    return found


@cache
def _import_all() -> None:
    for found in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(found.name)
