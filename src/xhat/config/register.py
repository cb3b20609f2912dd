"""`@xhat.register`: a part of a user's own becomes a name in every expression."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

import xhat.config.names  # noqa: F401  # xhat's own parts are registered before anybody else's
from xhat import registry
from xhat.config.expressions import typed_signature
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import Target
from xhat.diffusion.times import TimeSampler
from xhat.objective.multipliers import Multiplier
from xhat.objective.terms import Loss
from xhat.registry import Registry
from xhat.sampling.samplers import Sampler
from xhat.sampling.steering import Steering

Part = TypeVar("Part")

CLASSES: tuple[tuple[type, Registry], ...] = (
    (Loss, registry.LOSSES),
    (Multiplier, registry.MULTIPLIERS),
    (Schedule, registry.SCHEDULES),
    (TimeSampler, registry.TIMES),
    (Sampler, registry.SAMPLERS),
    (Steering, registry.STEERINGS),
)
CALLED: dict[tuple[str, ...], Registry] = {
    ("logsnr", "schedule"): registry.WEIGHTINGS,
    ("seed", "step"): registry.GATES,
    ("error",): registry.NORMS,
    ("error", "weight"): registry.NORMS,
    ("draw", "values"): registry.WHERE,
    ("denoiser", "draw"): registry.ESTIMATES,
    ("denoiser", "drawn", "draw"): registry.LIKELIHOODS,
    ("rewards",): registry.ADVANTAGES,
    ("x0", "noise"): registry.PAIRINGS,
    ("predict", "told", "untold"): registry.GUIDANCE,
    ("schedule", "steps"): registry.SPACINGS,
    ("schedule", "t"): registry.TIME_INPUTS,
}
"""What a part is by the names of the parameters that it is called with."""
IMAGES = ("images", "image", "img", "imgs", "samples", "fields", "field", "pixels", "x", "x0", "x0_hat")
"""What people call the first parameter of a penalty."""


class Register:
    """Registers a class, a function or a target: `@register`; where nobody can tell its kind, `@register.penalty` and so on."""

    def __call__(self, part: Part) -> Part:
        """Register under the part's own name, and in lower case.

        Raises:
            ValueError: nobody can tell what it is, or the name exists.
        """
        return _added(family_of(part), part)

    def __getattr__(self, kind: str) -> Callable[[Part], Part]:
        family = NAMED.get(kind)
        if family is None:
            raise AttributeError(f"there is no register.{kind}: known are {', '.join(NAMED)}")
        return lambda part: _added(family, part)


NAMED: dict[str, Registry] = {
    "network": registry.NETWORKS,
    "data": registry.DATA,
    "units": registry.UNITS,
    "map": registry.MAPS,
    "augmentation": registry.AUGMENTATIONS,
    "penalty": registry.PENALTIES,
    "loss": registry.LOSSES,
    "weighting": registry.WEIGHTINGS,
    "schedule": registry.SCHEDULES,
    "target": registry.TARGETS,
    "times": registry.TIMES,
    "sampler": registry.SAMPLERS,
    "gate": registry.GATES,
    "multiplier": registry.MULTIPLIERS,
    "norm": registry.NORMS,
    "where": registry.WHERE,
    "estimate": registry.ESTIMATES,
    "spacing": registry.SPACINGS,
    "time_input": registry.TIME_INPUTS,
    "variance": registry.VARIANCES,
    "differentiate": registry.GRADIENTS,
    "guidance": registry.GUIDANCE,
    "steering": registry.STEERINGS,
    "operator": registry.OPERATORS,
    "likelihood": registry.LIKELIHOODS,
    "advantage": registry.ADVANTAGES,
    "pairing": registry.PAIRINGS,
    "decoder": registry.DECODERS,
    "features": registry.FEATURES,
}

register = Register()
"""A decorator: a network, penalty, weighting, schedule, sampler, data source, ... of your own is a name in every expression."""


def _added(family: Registry, part: Part) -> Part:
    name = part.name.upper() if isinstance(part, Target) else getattr(part, "__name__", type(part).__name__)
    family.add(str(name), part)
    return part


def family_of(part: Any) -> Registry:
    """The family that a part belongs to, by its class, by what it returns, or by how it is called.

    Raises:
        ValueError: nobody can tell.
    """
    if isinstance(part, Target):
        return registry.TARGETS
    kind = part if inspect.isclass(part) else _returned(part)
    if kind is not None and (found := _of_class(kind)) is not None:
        return found
    parameters = _required(part)
    names = tuple(p.name for p in parameters)
    if names in CALLED:
        return CALLED[names]
    if parameters and (names[0] in IMAGES or parameters[0].annotation is Tensor) and names[1:] in ((), ("draw",)):
        return registry.PENALTIES
    return _unclear(part)


def _of_class(kind: type) -> Registry | None:
    for base, family in CLASSES:
        if issubclass(kind, base):
            return family
    if callable(getattr(kind, "get", None)) and callable(getattr(kind, "fingerprint", None)):
        return registry.DATA
    if issubclass(kind, nn.Module) and len(_required(kind)) != 1:
        return registry.NETWORKS
    return None


def _returned(part: Any) -> type | None:
    """The class that a function says that it returns."""
    try:
        kind = typed_signature(part).return_annotation
    except (TypeError, ValueError):
        return None
    return kind if inspect.isclass(kind) and kind not in (inspect.Signature.empty, Tensor) else None


def _required(part: Any) -> tuple[inspect.Parameter, ...]:
    """The parameters that must be given, by place, when it, or an object of the class, is called."""
    called = part
    if inspect.isclass(part):
        called = part.forward if issubclass(part, nn.Module) else part.__call__
    try:
        found = list(typed_signature(called).parameters.values())
    except (TypeError, ValueError):
        return ()
    by_place = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return tuple(by_place[1:] if inspect.isclass(part) else by_place)  # without self


def _unclear(part: Any) -> Registry:
    name = getattr(part, "__name__", type(part).__name__)
    ways = ", ".join(f"@xhat.register.{kind}" for kind in ("network", "penalty", "data"))
    raise ValueError(f"nobody can tell what {name} is: say so with {ways} or another of {', '.join(NAMED)}")
