"""Which real images a model is measured on, and what its network is told of them."""

import numpy as np
import pytest
import torch

from helpers import write_digits
from xhat.data.images import Found, Images
from xhat.data.parts import load_parts
from xhat.data.shape import DataShape
from xhat.errors import UsageError
from xhat.evaluation.reference import Reference, other_images, own_images

GREY = DataShape(1, 8, None)


@pytest.fixture
def split(tmp_path):
    """Data with a test part of three images, their brightness 100 and more."""
    pixels = np.zeros((5, 8, 8), np.uint8) + np.arange(50, 55, dtype=np.uint8)[:, None, None]
    np.savez(tmp_path / "split.npz", x_train=pixels, x_test=pixels[:3] + 50)
    return str(tmp_path / "split.npz")


def brightness(reference):
    return reference.images.pixels[:, 0, 0, 0].tolist()


def test_own_images_that_are_held_out_are_measured(tmp_path):
    """The 20 that `load_parts` sets aside; too few for a distance of distributions, for which there are those trained on."""
    data = str(write_digits(tmp_path / "own.npz", 400))
    parts = load_parts(data, 8, 0.05)
    real = own_images(GREY, parts)
    assert torch.equal(real.measured.images.pixels, parts.held_out.pixels)
    assert torch.equal(real.others.images.pixels[:], parts.train.pixels[:])
    assert real.distribution is real.others
    assert (real.measured.kind, real.others.kind) == ("held out", "training images")


def test_where_none_are_held_out_those_trained_on_are_measured(tmp_path):
    real = own_images(GREY, load_parts(str(write_digits(tmp_path / "few.npz", 64)), 8, 0.05))
    assert (len(real.measured), real.others, real.measured.kind) == (64, None, "training images")
    assert real.distribution is real.measured


def test_a_test_set_is_enough_for_a_distance_of_distributions(split):
    own, other = own_images(GREY, load_parts(split, 8, 0.5)), other_images(GREY, load_parts(split, 8))
    for real in (own, other):
        assert brightness(real.measured) == [100, 101, 102]
        assert brightness(real.others) == [50, 51, 52, 53, 54]
        assert real.distribution is real.measured
    assert (own.others.kind, other.others.kind) == ("training images", "held out")


def test_all_of_other_data_without_parts_are_measured(tmp_path):
    real = other_images(GREY, load_parts(str(write_digits(tmp_path / "other.npz", 64)), 8))
    assert (len(real.measured), real.others, real.measured.kind) == (64, None, "held out")
    assert real.distribution is real.measured


def test_other_data_are_told_with_the_models_own_numbers(tmp_path):
    """Data that have some of the model's classes are numbered as the model does, not anew."""
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 8, 8), np.uint8) + 99, labels=np.array(["class1"] * 4))
    shape = DataShape(3, 8, 2, ("class0", "class1"))
    real = other_images(shape, load_parts(str(tmp_path / "d.npz"), 8)).measured
    assert (real.labels.tolist(), real.conditional) == ([1] * 4, True)
    assert real.images.pixels.shape == (4, 3, 8, 8)
    with pytest.raises(UsageError, match="classes that the run does not know: class1"):
        other_images(DataShape(1, 8, 2), load_parts(str(tmp_path / "d.npz"), 8))


def test_the_null_class_is_no_condition():
    images = Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), None, 0, "x", found=Found())
    real = Reference.of(images, DataShape(1, 8, 10), held_out=True)
    assert (real.labels.tolist(), real.conditional) == ([10] * 3, False)
    x0, cond = real.first(2, torch.device("cpu"))
    assert (x0.shape, x0.unique().tolist(), cond["label"].tolist()) == ((2, 1, 8, 8), [-1.0], [10, 10])
    assert len(real.first(9, torch.device("cpu"))[0]) == 3
    untold = Reference.of(images, GREY, held_out=True)
    assert (untold.labels, untold.conditional, untold.first(1, torch.device("cpu"))[1]) == (None, False, None)


def test_a_mistake_names_the_images_that_are_measured(split):
    """Not the others, which are wrong as well."""
    with np.load(split) as arrays:
        np.savez(split, **arrays, y_train=np.arange(5), y_test=np.arange(3))
    for real in (
        lambda shape: own_images(shape, load_parts(split, 8, 0.5)),
        lambda shape: other_images(shape, load_parts(split, 8)),
    ):
        with pytest.raises(UsageError, match=r"split.npz \(test\) has classes that the run does not know: 2, 3, 4"):
            real(DataShape(1, 8, 2))
