"""Penalties of samples that nothing is trained on, measured on the way: a reward that rises says nothing of the others."""

import math
from dataclasses import replace

from xhat.config.build import build_sampling
from xhat.config.watch import build_watched
from xhat.evaluation.penalties import mean_penalties
from xhat.evaluation.pictures import shown
from xhat.tensors import evaluating
from xhat.training.artefacts import PICTURE_STEPS
from xhat.training.setup import PICTURE_IMAGES, PICTURE_LATENTS, Setup


def watched(setup: Setup, *, ended: bool) -> dict[str, float]:
    """`watch/NAME` for each of `Options.watch`, when it is time, else nothing; of samples of the same noise each time.

    By all processes: each draws some.
    """
    options, step = setup.options, setup.state.step
    every = math.ceil(options.sample_every / options.log_every) * options.log_every  # in a line that is written anyway
    if not options.watch or not (ended or step == options.log_every or step % every == 0):
        return {}
    model = setup.state.averaged()
    latents = model.decode is not None
    how = replace(options.sampling, steps=min(options.sampling.steps, PICTURE_STEPS))
    sampling, count = build_sampling(how, model.schedule), PICTURE_LATENTS if latents else PICTURE_IMAGES
    with evaluating(model):
        samples, _ = sampling.generate(model, setup.shape, count, cond=setup.told, shares=setup.shares)
        images = shown(samples, setup.shape, model, setup.shares) if latents else samples
    penalties = build_watched(options.watch, setup.shape, decoded=latents)
    return {f"watch/{name}": value for name, value in mean_penalties(images, penalties).items()}
