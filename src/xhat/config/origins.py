"""Which of a user's files the expressions of a config name parts of."""

import ast
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from xhat import registry
from xhat.config.changes import flat
from xhat.config.config import Config
from xhat.config.syntax import parse_expression
from xhat.config.use import UsedFile, used_files
from xhat.errors import ConfigError
from xhat.registry import Registry

OF_KEYS: dict[str, Registry] = {
    "network": registry.NETWORKS,
    "schedule": registry.SCHEDULES,
    "target": registry.TARGETS,
    "variance": registry.VARIANCES,
    "time_input": registry.TIME_INPUTS,
    "times": registry.TIMES,
    "data": registry.DATA,
    "augment": registry.AUGMENTATIONS,
    "sampling.sampler": registry.SAMPLERS,
    "sampling.spacing": registry.SPACINGS,
}
"""The family that the expression of a config key names; those of terms name several."""


def kinds_of(names: Mapping[str, Any]) -> tuple[str, ...]:
    """Of which kinds the parts are that an expression can name."""
    if isinstance(names, Registry):
        return (names.kind,)
    inner = names.maps if isinstance(names, ChainMap) else ()
    return tuple(kind for one in inner for kind in kinds_of(one))


def origin(text: str, kinds: tuple[str, ...]) -> str:
    """The names of the used files whose parts of these kinds an expression names; empty if there are none."""
    return ", ".join(file.name for file in used_files() if _names(text, kinds) & file.parts)


def called(config: Config) -> dict[str, str]:
    """How messages call the network and the terms of a config: their expressions, and the file that a part came from."""
    texts = {"network": config.network, **{name: term.loss for name, term in config.terms.items()}}
    kinds = {name: (registry.NETWORKS.kind,) if name == "network" else OF_LOSSES for name in texts}
    return {name: f"{text} of {file}" if (file := origin(text, kinds[name])) else text for name, text in texts.items()}


def needed_by(config: Config) -> list[UsedFile]:
    """The files of this process whose parts a config names."""
    named = set[tuple[str, str]]()
    for key, value in flat(asdict(config)).items():
        if isinstance(value, str):
            named |= _names(value, _kinds_of_key(key))
    return [file for file in used_files() if named & file.parts]


OF_LOSSES = tuple(dict.fromkeys(family.kind for family in registry.LOSSES.beside))
"""The kinds of parts that the loss of a term is made of."""


def _kinds_of_key(key: str) -> tuple[str, ...]:
    if key in OF_KEYS:
        return (OF_KEYS[key].kind,)
    if key.startswith("terms."):
        return {"weight": (registry.MULTIPLIERS.kind,), "when": (registry.GATES.kind,)}.get(key.rpartition(".")[2], OF_LOSSES)
    return ()


def _names(text: str, kinds: tuple[str, ...]) -> set[tuple[str, str]]:
    """(kind, name) of all that an expression may name."""
    try:
        named = {node.id for node in ast.walk(parse_expression(text)) if isinstance(node, ast.Name)}
    except ConfigError:
        return set()
    return {(kind, name) for kind in kinds for name in named}
