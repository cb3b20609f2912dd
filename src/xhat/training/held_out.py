"""Held-out images, measured on the common scale while training, for a small share of its network calls."""

import math

import torch

from xhat.config.config import Config
from xhat.data.images import Images, to_float
from xhat.data.parts import labels_for
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.evaluation.denoising import LEVELS, denoising_error

IMAGES, STRIDE = 32, 2
SHARE = 0.015


class HeldOut:
    """The first held-out images at every second level, always with the same noise: what a run's progress is seen by.

    Args:
        config: says how often, and the images per step.
        images: held out.
        shape: whose `classes` says whether the network is told labels.
        device: of the model.
    """

    def __init__(self, config: Config, images: Images, shape: DataShape, device: torch.device) -> None:
        first = images.chosen(torch.arange(min(IMAGES, len(images))))
        labels = labels_for(first, shape)
        self.x0, self.labels = to_float(first.pixels).to(device), None if labels is None else labels.to(device)
        # a training step costs three forward passes for each image, a measurement one for each image and level
        calls, per_step = len(self.x0) * len(LEVELS[::STRIDE]), 3 * config.batch_size
        every = math.ceil(calls / per_step / SHARE) if config.eval_every is None else config.eval_every
        self.every = math.ceil(every / config.log_every) * config.log_every  # in a line that is written anyway

    def due(self, step: int, ended: bool) -> bool:
        """Whether to measure after this many steps."""
        return self.every > 0 and (ended or step % self.every == 0)

    def measure(self, denoiser: Denoiser) -> dict[str, float]:
        """The bits and the errors, by their names in metrics.jsonl; nothing if the schedule is too short for the levels."""
        training = denoiser.training
        try:
            found = denoising_error(denoiser.eval(), self.x0, self.labels, LEVELS[::STRIDE], batch=len(self.x0))
        except ValueError:
            return {}
        finally:
            denoiser.train(training)
        bits = {"eval/bits_per_dim": found.bits_per_dim, "eval/bits_per_dim_se": found.bits_per_dim_se}
        levels = zip(found.logsnr, found.x0_error, strict=True)
        return bits | {f"eval/x0_error/logsnr={level:g}": error for level, error in levels}
