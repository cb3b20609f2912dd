"""The five choices: schedule, target, weighting, time density, reverse variance; and the denoiser that uses them."""
