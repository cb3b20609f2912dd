# SPDX-License-Identifier: MIT
"""xhat trains diffusion models on the loss you mean.

The nouns of the core path are here; the families are in namespaces: `schedules`, `targets`, `variances`, `weightings`,
`times`, `time_inputs`, `gaussians`; `gates`, `multipliers`; `samplers`, `spacings`, `differentiate`, `guidance`, `steering`;
`norms`, `penalties`, `rewards`; `bound`; `data`, `sources`.
"""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and ("-m", "xhat") in list(zip(sys.orig_argv, sys.orig_argv[1:])):  # noqa: B905
    del sys.path[0]  # of python -m xhat: the current folder, whose files would be imported in place of the libraries'

import importlib
import os
from typing import TYPE_CHECKING, Any

# OpenMP's waiting threads spin for milliseconds: when another process shares the cores, every step takes many times as long.
# Ten thousand turns cost nothing on a free machine. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from xhat import bound as bound
    from xhat import data as data
    from xhat import sources as sources
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
    from xhat.evaluation.pictures import grid
    from xhat.evaluation.validate import validate
    from xhat.losses import norms as norms
    from xhat.losses import penalties as penalties
    from xhat.losses import rewards as rewards
    from xhat.losses.adjoint import AdjointMatching
    from xhat.losses.chains import FullChain, Rollout
    from xhat.losses.decode import Decode
    from xhat.losses.denoising import Denoising
    from xhat.losses.image import ImageLoss, OneStep
    from xhat.losses.increment import Increment
    from xhat.losses.reference import OnOthers, ToReference, TrajectoryKL
    from xhat.losses.rewards import PolicyGradient
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
    from xhat.pipelines.diffusers_folder import load_diffusers
    from xhat.pipelines.from_diffusers import from_diffusers
    from xhat.pipelines.pretrained import pretrained
    from xhat.rng import Shard
    from xhat.runs.load import load
    from xhat.sampling import differentiate as differentiate
    from xhat.sampling import guidance as guidance
    from xhat.sampling import samplers as samplers
    from xhat.sampling import spacings as spacings
    from xhat.sampling import steering as steering
    from xhat.sampling.differentiate import Last, RandomLast, ReFL, Surrogate
    from xhat.sampling.generate import generate
    from xhat.sampling.guidance import Guided
    from xhat.sampling.sample import sample
    from xhat.sampling.samplers import DDIM, DDPM
    from xhat.sampling.spacings import uniform_times
    from xhat.sampling.steering import guided_by
    from xhat.training.callbacks import Callback
    from xhat.training.fit import fit

FAMILIES = {
    "bound": "xhat.bound",
    "data": "xhat.data",
    "differentiate": "xhat.sampling.differentiate",
    "gates": "xhat.objective.gates",
    "gaussians": "xhat.diffusion.gaussians",
    "guidance": "xhat.sampling.guidance",
    "multipliers": "xhat.objective.multipliers",
    "norms": "xhat.losses.norms",
    "penalties": "xhat.losses.penalties",
    "rewards": "xhat.losses.rewards",
    "samplers": "xhat.sampling.samplers",
    "schedules": "xhat.diffusion.schedules",
    "sources": "xhat.sources",
    "spacings": "xhat.sampling.spacings",
    "steering": "xhat.sampling.steering",
    "targets": "xhat.diffusion.targets",
    "time_inputs": "xhat.diffusion.time_inputs",
    "times": "xhat.diffusion.times",
    "variances": "xhat.diffusion.variances",
    "weightings": "xhat.diffusion.weightings",
}
NAMES = {
    "AdjointMatching": "xhat.losses.adjoint",
    "Batch": "xhat.data.batch",
    "Callback": "xhat.training.callbacks",
    "Cosine": "xhat.diffusion.schedules",
    "DDIM": "xhat.sampling.samplers",
    "DDPM": "xhat.sampling.samplers",
    "Decode": "xhat.losses.decode",
    "decode": "xhat.diffusion.targets",
    "Denoiser": "xhat.diffusion.denoiser",
    "Denoising": "xhat.losses.denoising",
    "Discrete": "xhat.diffusion.schedules",
    "DiT": "xhat.networks.dit",
    "Draw": "xhat.objective.draw",
    "elbo": "xhat.diffusion.weightings",
    "estimate_bound": "xhat.bound",
    "every": "xhat.objective.gates",
    "fit": "xhat.training.fit",
    "FLOW": "xhat.diffusion.targets",
    "Flow": "xhat.diffusion.schedules",
    "from_diffusers": "xhat.pipelines.from_diffusers",
    "FullChain": "xhat.losses.chains",
    "generate": "xhat.sampling.generate",
    "gradient_profile": "xhat.analysis.gradients",
    "grid": "xhat.evaluation.pictures",
    "Guided": "xhat.sampling.guidance",
    "guided_by": "xhat.sampling.steering",
    "Hybrid": "xhat.losses.variational",
    "ImageLoss": "xhat.losses.image",
    "Increment": "xhat.losses.increment",
    "Last": "xhat.sampling.differentiate",
    "LearnedUncertainty": "xhat.losses.uncertainty",
    "load": "xhat.runs.load",
    "load_diffusers": "xhat.pipelines.diffusers_folder",
    "Loss": "xhat.objective.terms",
    "masked": "xhat.losses.where",
    "masked_mean": "xhat.losses.where",
    "min_snr": "xhat.diffusion.weightings",
    "NOISE": "xhat.diffusion.targets",
    "Objective": "xhat.objective.objective",
    "ode_likelihood": "xhat.bound",
    "OneStep": "xhat.losses.image",
    "OnOthers": "xhat.losses.reference",
    "Options": "xhat.config.options",
    "PolicyGradient": "xhat.losses.rewards",
    "pretrained": "xhat.pipelines.pretrained",
    "RandomLast": "xhat.sampling.differentiate",
    "ReFL": "xhat.sampling.differentiate",
    "register": "xhat.config.register",
    "Rollout": "xhat.losses.chains",
    "sample": "xhat.sampling.sample",
    "Schedule": "xhat.diffusion.schedules",
    "Shard": "xhat.rng",
    "Surrogate": "xhat.sampling.differentiate",
    "Target": "xhat.diffusion.targets",
    "Term": "xhat.objective.terms",
    "TimeSampler": "xhat.diffusion.times",
    "ToReference": "xhat.losses.reference",
    "TrajectoryKL": "xhat.losses.reference",
    "UNet": "xhat.networks.unet",
    "uniform_times": "xhat.sampling.spacings",
    "V": "xhat.diffusion.targets",
    "validate": "xhat.evaluation.validate",
    "variational_bound": "xhat.bound",
    "VariationalBound": "xhat.losses.variational",
    "Weighting": "xhat.diffusion.weightings",
    "X0": "xhat.diffusion.targets",
}
"""The modules that are names here, and the modules that names are in: each is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name in FAMILIES:
        return importlib.import_module(FAMILIES[name])
    if name not in NAMES:
        raise AttributeError(f"module xhat has no attribute {name}")
    found = globals()[name] = getattr(importlib.import_module(NAMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *FAMILIES, *NAMES})


__all__ = [
    "AdjointMatching",
    "Batch",
    "Callback",
    "Cosine",
    "DDIM",
    "DDPM",
    "Decode",
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
    "from_diffusers",
    "FullChain",
    "generate",
    "gradient_profile",
    "grid",
    "Guided",
    "guided_by",
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
    "OnOthers",
    "Options",
    "PolicyGradient",
    "pretrained",
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
    "ToReference",
    "TrajectoryKL",
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
