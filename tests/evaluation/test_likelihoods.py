"""Which images the likelihood is measured on, and the better of two dequantizations."""

import pytest
import torch

from oracles import GaussianData, exact
from xhat import Cosine
from xhat.bound.estimate import estimate_bound
from xhat.bound.ode import TruncatedNormal, Uniform, ode_likelihood
from xhat.bound.student import limits, standard_error
from xhat.data.images import Images, to_float, to_uint8
from xhat.data.shape import DataShape
from xhat.errors import UsageError
from xhat.evaluation import likelihood as module
from xhat.evaluation.likelihood import bound, choose_at_random, choose_first, ode
from xhat.evaluation.reference import RealImages, Reference
from xhat.rng import generator

CPU = torch.device("cpu")


def reference(first, count, classes=None):
    """Images whose brightness is their number."""
    pixels = torch.arange(first, first + count).to(torch.uint8).reshape(count, 1, 1, 1).expand(count, 1, 2, 2).contiguous()
    images = Images(pixels, torch.arange(count) % 2, 2, "x")
    return Reference.of(images, DataShape(1, 2, classes), held_out=True)


def numbers(x0):
    return to_uint8(x0)[:, 0, 0, 0].tolist()


def test_the_pilot_is_of_the_others():
    real = RealImages(reference(0, 20, 2), reference(100, 30, 2))
    chosen = choose_at_random(real, 8, 12, 3, CPU)
    assert (len(chosen.x0), len(chosen.pilot), chosen.available) == (8, 12, 20)
    assert len(set(numbers(chosen.x0))) == 8
    assert min(numbers(chosen.pilot)) >= 100 > max(numbers(chosen.x0))
    assert chosen.cond["label"].tolist() == [n % 2 for n in numbers(chosen.x0)]
    assert chosen.pilot_cond["label"].tolist() == [n % 2 for n in numbers(chosen.pilot)]
    assert (
        numbers(choose_at_random(real, 8, 12, 3, CPU).x0)
        == numbers(chosen.x0)
        != numbers(choose_at_random(real, 8, 12, 4, CPU).x0)
    )


def test_without_others_a_fifth_is_the_pilot_and_is_not_measured():
    chosen = choose_at_random(RealImages(reference(0, 20), None), None, 512, 0, CPU)
    assert (len(chosen.x0), len(chosen.pilot), chosen.available) == (16, 4, 16)
    assert sorted(numbers(chosen.x0) + numbers(chosen.pilot)) == list(range(20))
    assert (chosen.cond, chosen.pilot_cond) == (None, None)
    assert len(choose_at_random(RealImages(reference(0, 20), None), None, 2, 0, CPU).pilot) == 2
    with pytest.raises(UsageError, match="x has 4 images: give at least 5"):
        choose_at_random(RealImages(reference(0, 4), None), None, 512, 0, CPU)


def test_the_first_images():
    chosen = choose_first(RealImages(reference(0, 20), reference(100, 30)), 3, 4, CPU)
    assert (numbers(chosen.x0), numbers(chosen.pilot), chosen.available) == ([0, 1, 2], [100, 101, 102, 103], 20)
    alone = choose_first(RealImages(reference(0, 3), None), 9, 2, CPU)
    assert (numbers(alone.x0), numbers(alone.pilot)) == ([0, 1, 2], [0, 1])


@pytest.fixture(scope="module")
def gaussian():
    """A model that is exact for its data, and images of them."""
    pixels = to_uint8(GaussianData().sample(12, torch.Generator().manual_seed(0)).float())
    shape = DataShape(pixels.shape[1], pixels.shape[2], None)
    real = RealImages(Reference.of(Images(pixels, None, 0, "x"), shape, held_out=True), None)
    return exact(GaussianData(), Cosine()).float(), choose_first(real, 5, 5, CPU)


def test_the_bound_is_the_estimate_of_the_chosen_images(gaussian):
    model, chosen = gaussian
    x0 = to_float(to_uint8(chosen.x0))
    found, expected = bound(model, chosen, steps=20, seed=2), estimate_bound(model, x0, x0, steps=20, seed=2)
    assert (found.bits_per_dim, found.network_evaluations_per_image) == (expected.bits_per_dim, 8)
    assert bound(model, chosen, evaluations=None, steps=20).network_evaluations_per_image == 20


def test_the_ode_takes_the_better_of_two_dequantizations(gaussian, monkeypatch):
    """In batches, each with a seed of its own."""
    model, chosen = gaussian
    monkeypatch.setattr(module, "ODE_BATCH", 3)
    done = []
    found = ode(model, chosen, seed=7, report=done.append)
    bits, calls = {}, 0
    for dequantization in (Uniform(), TruncatedNormal()):
        parts = []
        for first, last in ((0, 3), (3, 5)):
            seed = generator(7, first).initial_seed() % 2**31
            part = ode_likelihood(model, chosen.x0[first:last], dequantization=dequantization, seed=seed)
            parts.append(part.bits_per_dim)
            calls += part.network_evaluations * (last - first)
        bits[dequantization.name] = torch.cat(parts)
    low, high = sorted(bits.values(), key=lambda values: float(values.mean()))
    assert (found.bits_per_dim, found.other_bits_per_dim) == (float(low.mean()), float(high.mean()))
    assert found.bits_per_dim_se == standard_error(low)
    assert found.limits == limits(float(low.mean()), standard_error(low), 5)
    assert bits[found.dequantization] is low
    assert bits[found.other_dequantization] is high
    assert (found.network_evaluations_per_image, found.images, done) == (calls / 5, 5, [3, 2, 3, 2])
