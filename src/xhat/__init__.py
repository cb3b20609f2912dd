# SPDX-License-Identifier: MIT
"""xhat trains diffusion models on the loss you mean.

The nouns of the core path are here; the families are in namespaces: `schedules`, `targets`, `variances`, `weightings`,
`times`, `time_inputs`, `gaussians`; `gates`, `multipliers`; `samplers`, `spacings`, `differentiate`; `norms`, `penalties`;
`bound`; `data`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# OpenMP's waiting threads spin for milliseconds: when another process shares the cores, every step takes many times as long.
# Ten thousand turns cost nothing on a free machine. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from xhat import bound as bound
from xhat import data as data
from xhat.analysis.gradients import gradient_profile
from xhat.bound import estimate_bound, ode_likelihood, variational_bound
from xhat.config.options import Options
from xhat.config.register import register
from xhat.data.batch import Batch
from xhat.diffusion import gaussians as gaussians
from xhat.diffusion import schedules as schedules
from xhat.diffusion import targets as targets
from xhat.diffusion import time_inputs as time_inputs
from xhat.diffusion import times as times
from xhat.diffusion import variances as variances
from xhat.diffusion import weightings as weightings
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Cosine, Discrete, Flow, Schedule
from xhat.diffusion.targets import FLOW, NOISE, X0, Target, V, decode
from xhat.diffusion.times import TimeSampler
from xhat.diffusion.weightings import Weighting, elbo, min_snr
from xhat.losses import norms as norms
from xhat.losses import penalties as penalties
from xhat.losses.chains import FullChain, Rollout
from xhat.losses.denoising import Denoising
from xhat.losses.image import ImageLoss, OneStep
from xhat.losses.increment import Increment
from xhat.losses.uncertainty import LearnedUncertainty
from xhat.losses.variational import Hybrid, VariationalBound
from xhat.losses.where import masked, masked_mean
from xhat.networks.dit import DiT
from xhat.networks.unet import UNet
from xhat.objective import gates as gates
from xhat.objective import multipliers as multipliers
from xhat.objective.draw import Draw
from xhat.objective.gates import every
from xhat.objective.objective import Objective
from xhat.objective.terms import Loss, Term
from xhat.pretrained.diffusers_folder import load_diffusers
from xhat.rng import Shard
from xhat.runs.load import load
from xhat.sampling import differentiate as differentiate
from xhat.sampling import samplers as samplers
from xhat.sampling import spacings as spacings
from xhat.sampling.differentiate import Last, RandomLast, ReFL, Surrogate
from xhat.sampling.generate import generate
from xhat.sampling.guidance import Guided
from xhat.sampling.sample import sample
from xhat.sampling.samplers import DDIM, DDPM
from xhat.sampling.spacings import uniform_times
from xhat.training.callbacks import Callback

if TYPE_CHECKING:
    from xhat.evaluation.pictures import grid
    from xhat.evaluation.validate import validate
    from xhat.training.fit import fit

LATER = {"fit": "xhat.training.fit", "grid": "xhat.evaluation.pictures", "validate": "xhat.evaluation.validate"}
"""Names whose modules take long to import: they are looked up when they are first used."""


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module xhat has no attribute {name}")
    return getattr(importlib.import_module(LATER[name]), name)


__all__ = [
    "Batch",
    "Callback",
    "Cosine",
    "DDIM",
    "DDPM",
    "decode",
    "Denoiser",
    "Denoising",
    "Discrete",
    "DiT",
    "Draw",
    "elbo",
    "estimate_bound",
    "every",
    "fit",
    "FLOW",
    "Flow",
    "FullChain",
    "generate",
    "gradient_profile",
    "grid",
    "Guided",
    "Hybrid",
    "ImageLoss",
    "Increment",
    "Last",
    "LearnedUncertainty",
    "load",
    "load_diffusers",
    "Loss",
    "masked",
    "masked_mean",
    "min_snr",
    "NOISE",
    "Objective",
    "ode_likelihood",
    "OneStep",
    "Options",
    "RandomLast",
    "ReFL",
    "register",
    "Rollout",
    "sample",
    "Schedule",
    "Shard",
    "Surrogate",
    "Target",
    "Term",
    "TimeSampler",
    "UNet",
    "uniform_times",
    "V",
    "validate",
    "variational_bound",
    "VariationalBound",
    "Weighting",
    "X0",
]

__version__ = "0.1.0"
