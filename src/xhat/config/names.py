"""What the names of a config stand for: the registered parts of every room."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

# imported for what they register
import xhat.losses.chains
import xhat.losses.image
import xhat.losses.increment
import xhat.losses.penalties
import xhat.losses.uncertainty
import xhat.losses.variational
import xhat.networks.dit
import xhat.networks.level_posterior
import xhat.networks.unet
import xhat.objective.gates
import xhat.objective.multipliers
import xhat.pretrained.diffusers_unet
import xhat.sampling.differentiate
import xhat.sampling.samplers
import xhat.sampling.spacings  # noqa: F401
from xhat.registry import (
    ESTIMATES,
    GRADIENTS,
    LOSSES,
    NORMS,
    PENALTIES,
    SAMPLERS,
    TARGETS,
    TIMES,
    WEIGHTINGS,
)

OF_TERMS: Mapping[str, Any] = ChainMap(
    *(LOSSES, NORMS, ESTIMATES, GRADIENTS, PENALTIES, SAMPLERS, TIMES, TARGETS, WEIGHTINGS)  # type: ignore[arg-type]
)
"""What the expression of a term's loss is made of; of equal names the first."""
