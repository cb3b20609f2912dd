"""What to train on and what to measure on; images and labels as a network knows them."""

import pytest
import torch

from helpers import write_digits
from xhat.data.images import Found, Images
from xhat.data.parts import in_channels, labels_for, load_parts, set_aside
from xhat.data.shape import DataShape
from xhat.errors import UsageError


def test_a_share_is_set_aside_and_never_trained_on():
    """The two parts make up the whole, in order, with their labels; the same images every time; too small a share is none."""
    pixels = torch.arange(400).reshape(400, 1, 1, 1).to(torch.uint8).expand(400, 1, 4, 4).contiguous()
    whole = Images(pixels, torch.arange(400) % 7, 7, "x")
    training, aside = set_aside(whole, 0.05)
    assert (len(training), len(aside)) == (380, 20)
    assert torch.equal(set_aside(whole, 0.05)[1].pixels, aside.pixels)
    everything = torch.cat([training.labels, aside.labels]).bincount()
    assert torch.equal(everything, whole.labels.bincount())
    rows = {(int(p[0, 0, 0]), int(label)) for p, label in zip(whole.pixels, whole.labels, strict=True)}
    found = [
        (int(p[0, 0, 0]), int(label)) for part in (training, aside) for p, label in zip(part.pixels, part.labels, strict=True)
    ]
    assert set(found) == rows
    assert set_aside(whole, 0.03)[1] is None
    assert set_aside(whole, 0.0) == (whole, None)
    assert len(set_aside(Images(pixels.repeat(60, 1, 1, 1), None, 0, "x"), 0.5)[1]) == 1000


def test_parts_of_mnist_are_its_own():
    training, held_out = load_parts("mnist", held_out=0.05)
    assert (len(training), len(held_out)) == (60000, 10000)


def test_the_test_part_of_data_that_have_one(tmp_path):
    parts = load_parts("mnist")
    assert (parts.train.is_test_set, parts.held_out.is_test_set) == (False, True)
    own = load_parts(str(write_digits(tmp_path / "own.npz", 400)), held_out=0.05)
    assert (len(own.held_out), own.held_out.is_test_set) == (20, False)


def images(labels=None, names=(), channels=1):
    n = 4 if labels is None else len(labels)
    classes = 0 if labels is None else max(labels) + 1
    pixels = torch.arange(n * channels * 4).reshape(n, channels, 2, 2).to(torch.uint8)
    return Images(pixels, None if labels is None else torch.tensor(labels), classes, "x", names, Found())


def test_a_network_without_classes_is_told_no_labels():
    assert labels_for(images([0, 1, 2]), DataShape(1, 2, None)) is None


def test_images_without_labels_have_the_null_class():
    """Its number is that of the classes."""
    assert labels_for(images(), DataShape(1, 2, 10)).tolist() == [10] * 4


def test_labels_are_numbered_as_the_network_knows_the_classes():
    """Other data may have fewer classes, in another order; classes without names are called 0, 1, ...."""
    known = DataShape(1, 2, 3, ("cat", "dog", "eel"))
    assert labels_for(images([0, 1, 1, 0], ("eel", "cat")), known).tolist() == [2, 0, 0, 2]
    assert labels_for(images([0, 1, 2, 0], ("cat", "dog", "eel")), known).tolist() == [0, 1, 2, 0]
    assert labels_for(images([1, 0, 1]), DataShape(1, 2, 5)).tolist() == [1, 0, 1]
    with pytest.raises(UsageError, match=r"x has classes that the run does not know: ape, 0, 1, \.\.\."):
        labels_for(images([0, 1, 2, 3, 4], ("ape", "0", "1", "2", "cat")), known)


def test_grey_images_are_repeated_as_colour_ones():
    grey = images([0, 1])
    colour = in_channels(grey, 3)
    assert colour.pixels.shape == (2, 3, 2, 2)
    assert all(torch.equal(colour.pixels[:, k], grey.pixels[:, 0]) for k in range(3))
    assert (colour.name, colour.labels.tolist()) == ("x", [0, 1])
    assert in_channels(colour, 3) is colour
    with pytest.raises(UsageError, match="x has 3 channels, the run was trained on 1"):
        in_channels(colour, 1)
