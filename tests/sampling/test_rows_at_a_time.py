"""How many samples are drawn at a time."""

import pytest
import torch
from torch import nn

from xhat.budgets import GIB
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Cosine
from xhat.diffusion.targets import X0
from xhat.distributed import Shares
from xhat.sampling import memory
from xhat.sampling.generate import generate, rows_at_a_time
from xhat.sampling.memory import rows_that_fit
from xhat.sampling.samplers import DDIM
from xhat.sampling.spacings import uniform_times

CPU = torch.device("cpu")


class Wide(nn.Module):
    """Makes `width` maps of an image and their mean: of an image of S floats 4 S (width + 2) bytes are alive at once."""

    def __init__(self, width):
        super().__init__()
        self.width, self.seen = width, []

    def forward(self, z, t):
        self.seen.append(len(z))
        return z.repeat(1, self.width, 1, 1).mean(1, keepdim=True)


def denoiser(width):
    return Denoiser(Wide(width), Cosine(), X0)


def test_small_samples_are_not_asked_about():
    assert rows_that_fit(lambda: pytest.fail("called"), (3, 32, 32), CPU) == 125


@pytest.mark.parametrize(("bytes_each", "rows"), [(2**20, 125), (GIB // 64, 64), (GIB // 2, 2), (2 * GIB, 1)])
def test_large_samples_fill_an_eighth_of_the_memory(bytes_each, rows, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 8 * GIB)
    assert rows_that_fit(lambda: torch.empty(bytes_each // 4), (3, 512, 512), CPU) == rows


def test_a_large_image_is_drawn_in_batches_that_fit(monkeypatch):
    """8 MiB a sample and its maps, an eighth of 512 MiB: seven or eight at a time, whatever their number."""
    monkeypatch.setattr(memory, "memory", lambda: 2**29)
    model = denoiser(width=30)
    shape, times = DataShape(1, 256, None), uniform_times(model.schedule, 2)
    many, _ = generate(model, DDIM(), shape, 20, times=times)
    probe, *seen = model.net.seen
    assert probe == 1
    assert set(seen) == {7, 6}, "three batches, as equal as can be"
    assert sum(seen) == 2 * 20
    few, _ = generate(model, DDIM(), shape, 20, times=times, batch=3)
    assert torch.equal(many, few)


def test_processes_with_less_room_decide_for_all():
    """Else they would disagree on who draws which batch."""

    class Two(Shares):
        def map(self, work, items):
            return iter([work(items[0]), 5])

    times = torch.tensor([1.0, 0.0])
    assert rows_at_a_time(denoiser(width=1), DDIM(), times, DataShape(1, 28, None), 1.0, None, Two(0, 2)) == 5


def test_latents_are_always_asked_about(monkeypatch):
    """Small as they are: the networks that make them are not."""
    monkeypatch.setattr(memory, "memory", lambda: 8 * GIB)
    call = lambda: torch.empty(GIB // 16)  # noqa: E731
    assert rows_that_fit(call, (4, 32, 32), CPU, latents=True) == 4
