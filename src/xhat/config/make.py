"""The object of an expression under a config key, of the kind that the key asks for."""

from collections.abc import Mapping
from typing import Any

from xhat.config.expressions import evaluate, signature_of
from xhat.config.origins import kinds_of, origin
from xhat.errors import ConfigError
from xhat.objective.terms import Loss
from xhat.registry import LOSSES, SAMPLERS, Registry
from xhat.sampling.samplers import Sampler

OWN: dict[type, Registry] = {Loss: LOSSES, Sampler: SAMPLERS}
"""What is listed of kinds whose expressions are made of parts of other kinds, too."""


def make(key: str, text: str, names: Mapping[str, Any], kind: type | None = None, context: dict[str, Any] | None = None) -> Any:
    """The object of an expression under a config key: of this kind, or callable where no kind is given.

    Raises:
        ConfigError: it is another, or none; with the key.
    """
    file = origin(text, kinds_of(names))
    where = f"{file}: {key}" if file else key  # a part that a user brought is named by its file
    try:
        made = evaluate(text, names, context)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if kind is not None and isinstance(made, type) and issubclass(made, kind):
        raise ConfigError(f"{where}: {text} needs arguments: {signature_of(text, made)}")
    if (kind is not None and not isinstance(made, kind)) or not (kind or callable(made)):
        of = OWN.get(kind, names) if kind else names
        what = of.kind if isinstance(of, Registry) else key
        raise ConfigError(f'{where}: "{text}" is no {what}; known: {", ".join(of)}')
    return made
