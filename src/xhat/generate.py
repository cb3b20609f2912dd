"""Samples of a trained denoiser as uint8 images."""

from collections.abc import Callable

import torch
from torch import Tensor

from xhat import counted
from xhat.config import DataShape, SamplingConfig, build_sampler, build_times
from xhat.data.images import to_uint8
from xhat.denoiser import Denoiser
from xhat.guidance import Guided
from xhat.samplers import Sampler, sample


def draw(
    denoiser: Denoiser,
    how: SamplingConfig,
    shape: DataShape,
    n: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`generate` as a config says.

    Raises:
        ValueError: the sampler, the spacing or the number of steps does not exist.
    """
    times = build_times(how.spacing, denoiser.schedule, how.steps)
    sampler = build_sampler(how.sampler)
    return generate(denoiser, sampler, shape, n, times=times, guidance=how.guidance, seed=seed, progress=progress)


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    sampler: Sampler,
    shape: DataShape,
    n: int,
    *,
    times: Tensor,
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
        times: of the steps, from 1 to 0.
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
    top = denoiser.schedule.sigma(torch.ones(1, device=device)).detach()
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
