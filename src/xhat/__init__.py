"""xhat trains diffusion models on the loss you mean."""

import os

# OpenMP's waiting threads spin for milliseconds: when another process shares the cores, every step takes many times as long.
# Ten thousand turns cost nothing on a free machine. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from xhat.analysis.gradients import GradientProfile, gradient_profile
from xhat.bound import DENSITY, DISCRETIZED, SOFTMAX, Bound, BoundEstimate, estimate_bound, ode_likelihood, variational_bound
from xhat.bound.eight_bit import DiscretizedGaussian, softmax_decoder
from xhat.diffusion import weightings
from xhat.diffusion.denoiser import Denoiser, Prediction, diffusers_index, log_sigma, time_itself
from xhat.diffusion.gaussians import Gaussian, kl, posterior
from xhat.diffusion.schedules import VE, Cosine, Discrete, Flow, Learned, LinearLogSNR, Schedule
from xhat.diffusion.targets import FLOW, NOISE, POSTERIOR_MEAN, SCALED_NOISE, SCORE, STEP_NOISE, X0, Target, V, decode, edm
from xhat.diffusion.times import (
    Adaptive,
    LogitNormal,
    LogNormalSigma,
    LossSecondMoment,
    OneLevel,
    Sequential,
    Stratified,
    TimeSampler,
    Uniform,
)
from xhat.diffusion.variances import FIXED_LARGE, FORWARD, LEARNED, POSTERIOR
from xhat.diffusion.weightings import (
    Weighting,
    between,
    clipped_velocity,
    constant,
    convert_weighting,
    debiased,
    elbo,
    from_density,
    high_snr,
    inverse_posterior_variance,
    min_snr,
    p2,
    sigmoid,
    truncated_snr,
)
from xhat.losses.chains import FullChain, Rollout
from xhat.losses.denoising import Denoising
from xhat.losses.image import ImageEstimate, ImageLoss, OneStep
from xhat.losses.increment import Increment
from xhat.losses.norms import absolute, euclidean, huber, squared
from xhat.losses.penalties import (
    Paired,
    frozen,
    high_frequencies,
    laplacian,
    lpips,
    mask,
    masked_mean,
    out_of_range,
    per_image,
    ssim,
    total_variation,
    unreadable_digit,
)
from xhat.losses.uncertainty import LearnedUncertainty
from xhat.losses.variational import Hybrid, ScheduleVariance, VariationalBound, everything, variance_only
from xhat.networks.dit import DiT
from xhat.networks.unet import UNet
from xhat.objective.draw import Draw
from xhat.objective.gates import Gate, after, always, both, every, randomly, reweighted
from xhat.objective.multipliers import ConflictFree, DualAscent, GradientRatio, Multiplier
from xhat.objective.objective import Objective
from xhat.objective.terms import Loss, Term
from xhat.pretrained.diffusers_folder import load_diffusers
from xhat.rng import Shard
from xhat.runs.load import load
from xhat.sampling.differentiate import AllSteps, Last, NoSteps, RandomLast, ReFL, Surrogate
from xhat.sampling.generate import generate
from xhat.sampling.guidance import Guided
from xhat.sampling.sample import prior, sample
from xhat.sampling.samplers import DDIM, DDPM, DPMSolver2M, Euler, Heun, Sampler
from xhat.sampling.spacings import karras_times, uniform_times

__all__ = [
    "Gate",
    "ImageEstimate",
    "Sampler",
    "gradient_profile",
    "GradientProfile",
    "load_diffusers",
    "frozen",
    "laplacian",
    "high_frequencies",
    "mask",
    "masked_mean",
    "ssim",
    "lpips",
    "unreadable_digit",
    "AllSteps",
    "Last",
    "NoSteps",
    "RandomLast",
    "ReFL",
    "Surrogate",
    "FullChain",
    "Rollout",
    "ConflictFree",
    "DualAscent",
    "GradientRatio",
    "Multiplier",
    "between",
    "high_snr",
    "inverse_posterior_variance",
    "Paired",
    "both",
    "reweighted",
    "absolute",
    "Adaptive",
    "after",
    "always",
    "Bound",
    "BoundEstimate",
    "clipped_velocity",
    "constant",
    "Cosine",
    "DDIM",
    "DDPM",
    "debiased",
    "decode",
    "Denoiser",
    "Denoising",
    "diffusers_index",
    "Discrete",
    "DiT",
    "DiscretizedGaussian",
    "DENSITY",
    "DISCRETIZED",
    "DPMSolver2M",
    "Draw",
    "edm",
    "elbo",
    "estimate_bound",
    "euclidean",
    "Euler",
    "every",
    "everything",
    "Flow",
    "FLOW",
    "FIXED_LARGE",
    "FORWARD",
    "from_density",
    "Gaussian",
    "generate",
    "Guided",
    "Heun",
    "huber",
    "Hybrid",
    "ImageLoss",
    "Increment",
    "karras_times",
    "kl",
    "Learned",
    "LEARNED",
    "LearnedUncertainty",
    "LinearLogSNR",
    "load",
    "log_sigma",
    "LogitNormal",
    "LogNormalSigma",
    "Loss",
    "LossSecondMoment",
    "min_snr",
    "convert_weighting",
    "NOISE",
    "Objective",
    "ode_likelihood",
    "OneLevel",
    "OneStep",
    "out_of_range",
    "p2",
    "per_image",
    "posterior",
    "POSTERIOR",
    "POSTERIOR_MEAN",
    "Prediction",
    "prior",
    "randomly",
    "sample",
    "SCALED_NOISE",
    "Schedule",
    "ScheduleVariance",
    "SCORE",
    "Sequential",
    "Shard",
    "sigmoid",
    "SOFTMAX",
    "softmax_decoder",
    "squared",
    "STEP_NOISE",
    "Stratified",
    "Target",
    "Term",
    "time_itself",
    "TimeSampler",
    "total_variation",
    "truncated_snr",
    "UNet",
    "Uniform",
    "uniform_times",
    "V",
    "variance_only",
    "variational_bound",
    "VariationalBound",
    "VE",
    "Weighting",
    "weightings",
    "X0",
]

__version__ = "0.1.0"
