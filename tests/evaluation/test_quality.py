"""Features and what is read in them."""

import torch
from torch import nn

from xhat.data.idx import mnist
from xhat.data.shape import DataShape
from xhat.evaluation.fid import distance, read_digits
from xhat.evaluation.quality import Features


def test_the_shipped_network_is_for_images_that_it_can_read():
    assert Features.shipped(DataShape(1, 28, 10)).name == "mnist"
    for shape in (DataShape(3, 28, 10), DataShape(1, 32, None)):
        assert Features.shipped(shape) is None


def test_samples_are_compared_and_read():
    test, features = mnist("test").pixels, Features.shipped(DataShape(1, 28, None))
    zeros, real = (features.of(part) for part in (test[mnist("test").labels == 0][:100], test[:400]))
    found = features.compare(zeros, real)
    assert found.distance == distance(zeros, real, "mnist")
    assert (found.distance.samples, found.distance.reference) == (100, 400)
    assert found.reading == read_digits(features.network.read(zeros))
    assert found.reading.digits[0] > 95
    assert min(found.reading_real.digits) > 20


def test_another_network_reads_no_digits():
    pixels = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = Features(nn.Flatten(), "pixels")
    found = features.compare(features.of(pixels[:20]), features.of(pixels[20:]))
    assert (found.reading, found.reading_real, found.distance.features) == (None, None, "pixels")
    assert found.distance.fid > 0
