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
    ADVANTAGES,
    DECODERS,
    ESTIMATES,
    GRADIENTS,
    GUIDANCE,
    LIKELIHOODS,
    LOSSES,
    NORMS,
    OPERATORS,
    PENALTIES,
    SAMPLERS,
    STEERINGS,
    TARGETS,
    TIMES,
    WEIGHTINGS,
    WHERE,
)

for _room in (xhat.diffusion, xhat.networks, xhat.objective, xhat.sampling, xhat.losses, xhat.pipelines, xhat.sources):
    for _module in pkgutil.walk_packages(_room.__path__, f"{_room.__name__}."):  # for what they register
        importlib.import_module(_module.name)

OF_TERMS: Mapping[str, Any] = ChainMap(
    *(LOSSES, NORMS, WHERE, ESTIMATES, GRADIENTS, GUIDANCE, DECODERS, PENALTIES, LIKELIHOODS, ADVANTAGES, SAMPLERS, TIMES),  # type: ignore[arg-type]
    *(TARGETS, WEIGHTINGS),  # type: ignore[arg-type]
)
"""What the expression of a term's loss is made of; of equal names the first."""

OF_SAMPLERS: Mapping[str, Any] = ChainMap(SAMPLERS, STEERINGS, OPERATORS, OF_TERMS)  # type: ignore[arg-type]
"""What a sampler is made of, and what is laid around it: penalties among others."""
