"""Held-out samples, measured on the common scale while training, for a small share of its network calls."""

import math

from xhat.config.options import Options
from xhat.data.batch import Batch
from xhat.diffusion.denoiser import Denoiser
from xhat.evaluation.denoising import LEVELS, denoising_error

IMAGES, STRIDE = 32, 2
SHARE = 0.015


class HeldOut:
    """A few held-out samples at every second level, always with the same noise: what a run's progress is seen by.

    Args:
        options: say how often, and the samples per step.
        samples: held out, on the device of the model.
    """

    def __init__(self, options: Options, samples: Batch) -> None:
        self.samples = samples
        # a training step costs three forward passes for each sample, a measurement one for each sample and level
        calls, per_step = len(samples.x0) * len(LEVELS[::STRIDE]), 3 * options.batch_size
        every = math.ceil(calls / per_step / SHARE) if options.eval_every is None else options.eval_every
        self.every = math.ceil(every / options.log_every) * options.log_every  # in a line that is written anyway

    def due(self, step: int, ended: bool) -> bool:
        """Whether to measure after this many steps."""
        return self.every > 0 and (ended or step % self.every == 0)

    def measure(self, denoiser: Denoiser) -> dict[str, float]:
        """The bits and the errors, by their names in metrics.jsonl; nothing if the schedule is too short for the levels."""
        training, x0 = denoiser.training, self.samples.x0
        try:
            found = denoising_error(denoiser.eval(), x0, self.samples.cond, LEVELS[::STRIDE], batch=len(x0))
        except ValueError:
            return {}
        finally:
            denoiser.train(training)
        bits = {"eval/bits_per_dim": found.bits_per_dim, "eval/bits_per_dim_se": found.bits_per_dim_se}
        levels = zip(found.logsnr, found.x0_error, strict=True)
        return bits | {f"eval/x0_error/logsnr={level:g}": error for level, error in levels}
