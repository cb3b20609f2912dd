"""The names of configs, and the objects they stand for: the only such tables."""

from xhat.config.expressions import Factory
from xhat.diffusion import noise_levels, schedules, targets, times, variances, weightings
from xhat.diffusion.denoiser import diffusers_index, log_sigma, time_itself
from xhat.losses import backward, chains, denoising, image, increment, penalties, variational
from xhat.networks.dit import DiT
from xhat.networks.level_posterior import LevelPosterior
from xhat.networks.unet import UNet
from xhat.objective import gates, multipliers
from xhat.pretrained.diffusers_unet import diffusers_schedule, diffusers_unet
from xhat.sampling import samplers

NETWORKS = {
    "unet": Factory(UNet),
    "dit": Factory(DiT),
    "level_posterior": Factory(LevelPosterior),
    "diffusers_unet": diffusers_unet,
}
SCHEDULES = {
    "cosine": Factory(schedules.Cosine),
    "linear_logsnr": Factory(schedules.LinearLogSNR),
    "flow": Factory(schedules.Flow),
    "ve": Factory(schedules.VE),
    "learned": Factory(schedules.Learned),
    "linear_beta": Factory(schedules.Discrete.linear_beta),
    "cosine_beta": Factory(schedules.Discrete.cosine_beta),
    "diffusers_schedule": diffusers_schedule,
    "zero_terminal": lambda schedule: schedule.rescale_zero_terminal(),
}
TARGETS = {
    **{t.name: t for t in (targets.X0, targets.NOISE, targets.V, targets.SCALED_NOISE, targets.STEP_NOISE)},
    **{t.name: t for t in (targets.POSTERIOR_MEAN, targets.SCORE, targets.FLOW)},
    "edm": Factory(targets.edm),
}
VARIANCES = {
    "posterior": variances.POSTERIOR,
    "forward": variances.FORWARD,
    "fixed_large": variances.FIXED_LARGE,
    "learned": variances.LEARNED,
}
TIME_INPUTS = {"network": None, "t": time_itself, "log_sigma": log_sigma, "diffusers_index": diffusers_index}
TIMES = {
    "uniform": Factory(times.Uniform),
    "stratified": Factory(times.Stratified),
    "one_level": Factory(times.OneLevel),
    "sequential": Factory(times.Sequential),
    "logit_normal": Factory(times.LogitNormal),
    "log_normal_sigma": Factory(times.LogNormalSigma),
    "loss_second_moment": Factory(times.LossSecondMoment),
    "adaptive": Factory(times.Adaptive),
}
WEIGHTINGS = {
    "constant": weightings.constant,
    "elbo": weightings.elbo,
    "truncated_snr": weightings.truncated_snr,
    "debiased": weightings.debiased,
    "min_snr": Factory(weightings.min_snr),
    "p2": Factory(weightings.p2),
    "sigmoid": Factory(weightings.sigmoid),
    "edm_weight": weightings.edm,
    "clipped_velocity": Factory(weightings.clipped_velocity),
    "from_density": weightings.from_density,
    "product": weightings.product,
    "moved": weightings.moved,
    "learned_uncertainty": Factory(weightings.learned_uncertainty),
    "high_snr": Factory(noise_levels.high_snr),
    "between": noise_levels.between,
    "inverse_posterior_variance": Factory(noise_levels.inverse_posterior_variance),
}
LOSSES = {
    "denoising": Factory(denoising.Denoising),
    "increment": Factory(increment.Increment),
    "variational_bound": Factory(variational.VariationalBound),
    "hybrid": Factory(variational.Hybrid),
    "schedule_variance": Factory(variational.ScheduleVariance),
    "everything": variational.everything,
    "variance_only": variational.variance_only,
    "image_loss": image.ImageLoss,
    "one_step": Factory(image.OneStep),
    "rollout": Factory(chains.Rollout),
    "full_chain": Factory(chains.FullChain),
    "random_last": backward.RandomLast,
    "surrogate": Factory(backward.Surrogate),
    "refl": backward.ReFL,
    "squared": denoising.squared,
    "absolute": denoising.absolute,
    "euclidean": denoising.euclidean,
    "huber": Factory(denoising.huber),
    "total_variation": penalties.total_variation,
    "laplacian": penalties.laplacian,
    "high_frequencies": penalties.high_frequencies,
    "unreadable_digit": penalties.unreadable_digit,
    "ssim": Factory(penalties.ssim),
    "lpips": Factory(penalties.lpips),
    "out_of_range": penalties.out_of_range,
}
GATES = {
    "always": gates.always,
    "every": gates.every,
    "randomly": gates.randomly,
    "after": gates.after,
    "both": gates.both,
    "reweighted": gates.reweighted,
}
MULTIPLIERS = {
    "dual_ascent": multipliers.DualAscent,
    "gradient_ratio": Factory(multipliers.GradientRatio),
    "conflict_free": Factory(multipliers.ConflictFree),
}
SAMPLERS = {
    "ddpm": Factory(samplers.DDPM),
    "ddim": Factory(samplers.DDIM),
    "euler": Factory(samplers.Euler),
    "heun": Factory(samplers.Heun),
    "dpm2m": Factory(samplers.DPMSolver2M),
}
SPACINGS = {"uniform": samplers.uniform_times, "karras": samplers.karras_times}
