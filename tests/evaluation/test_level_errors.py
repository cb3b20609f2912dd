"""Errors by noise level beside the exact denoiser, and beside the floor."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers import write_digits
from xhat import X0, Cosine, Denoiser
from xhat.data.images import to_float
from xhat.data.parts import load_parts
from xhat.data.shape import DataShape
from xhat.evaluation import level_errors as module
from xhat.evaluation.floor import floor_errors
from xhat.evaluation.level_errors import known_floor, level_errors
from xhat.evaluation.reference import own_images

LEVELS = (-2.0, 0.0, 1.0)


class Grey(nn.Module):
    """x0_hat = 0, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, z, t, label=None):
        return torch.zeros_like(z)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_digits(tmp_path_factory.mktemp("data") / "many.npz", 1200))


def test_the_error_of_a_grey_image_is_the_second_moment(data):
    """At every level; its bits are ½ ∫ error dSNR / ln 2, by the trapezoidal rule in logsnr."""
    real = own_images(DataShape(1, 8, None), load_parts(data, 8, 0.05)).measured
    errors = level_errors(Denoiser(Grey(), Cosine(), X0), real, 16, LEVELS)
    moment = to_float(real.images.pixels[:16]).double().square().mean((1, 2, 3))
    torch.testing.assert_close(errors.errors, moment.expand(3, 16), rtol=1e-6, atol=0)
    density = [math.exp(level) * float(moment.mean()) / (2 * math.log(2)) for level in LEVELS]
    found = errors.summary()
    assert found.bits_per_dim == pytest.approx(density[0] + 1.5 * density[1] + 0.5 * density[2], rel=1e-6)
    assert (errors.logsnr, found.images) == (list(LEVELS), 16)


def test_the_excess_is_paired_image_by_image(data):
    """Two images whose errors and floors differ by as much have an excess without spread."""
    errors = module.LevelErrors([0.0, 1.0], torch.tensor([[3.0, 5.0], [2.0, 6.0]], dtype=torch.float64))
    floor = module.FloorErrors(errors.errors - 1, errors.errors + 2)
    excess = errors.over(floor)
    assert (excess.above.x0_error, excess.above.x0_error_se, excess.above.bits_per_dim_se) == ([1.0, 1.0], [0.0, 0.0], 0.0)
    assert (excess.lower.x0_error, excess.upper.x0_error) == ([3.0, 3.0], [6.0, 6.0])
    assert excess.lower.x0_error_se == pytest.approx([1.0, 2.0])


def test_the_floor_looks_at_so_many_images_at_most(data, monkeypatch):
    """1,000 random ones at least: fewer known images, a higher upper error."""
    monkeypatch.setattr(module, "MOST_KNOWN_NUMBERS", 64)
    real = own_images(DataShape(1, 8, None), load_parts(data, 8, 0.05))
    floor = known_floor(real.others, real.measured, 16, LEVELS)
    training, x0 = real.others.images, to_float(real.measured.images.pixels[:16])
    chosen = torch.randperm(1140, generator=torch.Generator().manual_seed(0))[:1000]
    expected = floor_errors(to_float(training.pixels[chosen]), x0, logsnr=LEVELS)
    torch.testing.assert_close(floor.upper, expected.upper)
    assert not torch.equal(expected.upper, floor_errors(to_float(training.pixels[:]), x0, logsnr=LEVELS).upper)


def test_the_floor_knows_the_labels_that_the_network_is_told(data, tmp_path):
    """Not where it is told the null class alone."""
    told = own_images(DataShape(1, 8, 4), load_parts(data, 8, 0.05))
    training, images = told.others.images, told.measured.images
    x0 = to_float(images.pixels[:16])
    given = floor_errors(to_float(training.pixels[:]), x0, training.labels, images.labels[:16], LEVELS)
    torch.testing.assert_close(known_floor(told.others, told.measured, 16, LEVELS).upper, given.upper)
    np.savez(tmp_path / "unlabelled.npz", images=np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8))
    null = own_images(DataShape(1, 8, 4), load_parts(str(tmp_path / "unlabelled.npz"), 8, 0.05))
    x0 = to_float(null.measured.images.pixels)
    free = floor_errors(to_float(null.others.images.pixels[:]), x0, logsnr=LEVELS)
    torch.testing.assert_close(known_floor(null.others, null.measured, 99, LEVELS).upper, free.upper)
