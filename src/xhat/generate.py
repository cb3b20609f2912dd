"""Samples of a trained denoiser as uint8 images."""

from collections.abc import Callable

import torch
from torch import Tensor

from xhat import counted
from xhat.config import DataShape
from xhat.data.images import to_uint8
from xhat.denoiser import Denoiser
from xhat.guidance import Guided
from xhat.samplers import Sampler, sample, uniform_times


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    sampler: Sampler,
    shape: DataShape,
    n: int,
    *,
    steps: int,
    guidance: float = 1.0,
    seed: int = 0,
    batch: int = 125,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Draw n images; sample k depends on (seed, k) alone, and has class k mod classes if the model is conditional.

    Args:
        denoiser: the model.
        sampler: its rule.
        shape: of the images.
        n: how many.
        steps: sampling steps.
        guidance: classifier-free guidance scale.
        seed: of the noise.
        batch: images at a time.
        progress: called with the number of images done so far.

    Returns:
        uint8 images (n, C, H, W) and their labels (n,), None for unconditional models.
    """
    device = next(denoiser.net.parameters()).device
    labels = torch.arange(n) % shape.classes if shape.classes else None
    model = Guided(denoiser, guidance, shape.classes) if shape.classes else denoiser
    times, top = uniform_times(denoiser.schedule, steps), denoiser.schedule.sigma(torch.ones(1, device=device))
    done = []
    for first in range(0, n, batch):
        count = min(batch, n - first)
        noise = counted.normal((count, shape.channels, shape.size, shape.size), seed, "sample", first=first, device=device)
        images = sample(
            model,
            sampler,
            top * noise,
            times.to(device),
            cond=None if labels is None else {"label": labels[first : first + count].to(device)},
            generator=counted.generator(seed, "sampler", first, device=device),
        )
        done.append(to_uint8(images).cpu())
        if progress is not None:
            progress(first + count)
    return torch.cat(done), labels
