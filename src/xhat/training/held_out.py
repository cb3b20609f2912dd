"""Held-out samples, measured on the common scale while training, for a small share of its network calls."""

import math
from collections.abc import Sequence

from xhat.config.options import Options
from xhat.data.batch import Batch
from xhat.diffusion.denoiser import Denoiser
from xhat.distributed import ALONE, Shares
from xhat.errors import RunError, first_line
from xhat.evaluation.denoising import LEVELS, denoising_error
from xhat.tensors import evaluating

IMAGES, STRIDE = 32, 2
SHARE = 0.015


class HeldOut:
    """A few held-out samples at every second level, always with the same noise: what a run's progress is seen by.

    Args:
        options: say how often, and the samples per step.
        samples: held out, on the device of the model.
        levels: of noise, at which to measure.
    """

    def __init__(self, options: Options, samples: Batch, levels: Sequence[float] = LEVELS[::STRIDE]) -> None:
        self.samples, self.levels = samples, levels
        # a training step costs three forward passes for each sample, a measurement one for each sample and level
        calls, per_step = len(samples.x0) * len(levels), 3 * options.batch_size
        every = math.ceil(calls / per_step / SHARE) if options.eval_every is None else options.eval_every
        self.every = math.ceil(every / options.log_every) * options.log_every  # in a line that is written anyway

    def due(self, step: int, ended: bool) -> bool:
        """Whether to measure after this many steps."""
        return self.every > 0 and (ended or step % self.every == 0)

    def measure(self, denoiser: Denoiser, shares: Shares = ALONE) -> dict[str, float]:
        """The bits and the errors, by their names in metrics.jsonl; of several processes each measures some."""
        x0 = self.samples.x0
        with evaluating(denoiser):
            found = denoising_error(denoiser, x0, self.samples.cond, self.levels, batch=len(x0), shares=shares)
        bits = {"eval/bits_per_dim": found.bits_per_dim, "eval/bits_per_dim_se": found.bits_per_dim_se}
        levels = zip(found.logsnr, found.x0_error, strict=True)
        return bits | {f"eval/x0_error/logsnr={level:g}": error for level, error in levels}

    def check(self, denoiser: Denoiser) -> None:
        """Try two samples at two levels.

        Raises:
            RunError: they cannot be measured, or say nothing of a spread.
        """
        x0, cond = self.samples.x0, self.samples.cond
        if len(x0) < 2 or not bool(x0.isfinite().all()):
            what = "values that are not finite" if len(x0) > 1 else "one sample, which says nothing of a spread"
            raise RunError(f"the held-out data hold {what}: give others, or none")
        few = None if cond is None else {name: value[:2] for name, value in cond.items()}
        try:
            with evaluating(denoiser):
                denoising_error(denoiser, x0[:2], few, self.levels[:2])
        except Exception as error:
            raise RunError(f"the held-out data cannot be measured: {first_line(error)}") from error
