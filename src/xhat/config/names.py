"""What the names of a config stand for: the registered parts of every room."""

import importlib
import pkgutil
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import xhat.diffusion
import xhat.losses
import xhat.networks
import xhat.objective
import xhat.pipelines
import xhat.sampling
import xhat.sources
from xhat.registry import (
    DECODERS,
    ESTIMATES,
    GRADIENTS,
    GUIDANCE,
    LOSSES,
    NORMS,
    PENALTIES,
    SAMPLERS,
    TARGETS,
    TIMES,
    WEIGHTINGS,
    WHERE,
)

for _room in (xhat.diffusion, xhat.networks, xhat.objective, xhat.sampling, xhat.losses, xhat.pipelines, xhat.sources):
    for _module in pkgutil.walk_packages(_room.__path__, f"{_room.__name__}."):  # for what they register
        importlib.import_module(_module.name)

OF_TERMS: Mapping[str, Any] = ChainMap(
    *(LOSSES, NORMS, WHERE, ESTIMATES, GRADIENTS, GUIDANCE, DECODERS, PENALTIES, SAMPLERS, TIMES, TARGETS, WEIGHTINGS)  # type: ignore[arg-type]
)
"""What the expression of a term's loss is made of; of equal names the first."""
