"""What a network must know of the data."""

import pytest
import torch

from helpers import write_digits
from xhat.data.images import Found, Images
from xhat.data.load import load, load_shape
from xhat.data.shape import DataShape, data_shape
from xhat.errors import DataError

PIXELS = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELLED = Images(PIXELS, torch.arange(4), 4, "own", names=("a", "b", "c", "d"))
UNLABELLED = Images(PIXELS, None, 0, "own", found=Found(unlabelled="its images are in no class folders"))


@pytest.mark.parametrize("labels", [True, "auto"])
def test_classes_and_their_names_are_those_of_the_data(labels):
    shape = data_shape(LABELLED, labels)
    assert shape == DataShape(3, 8, 4)
    assert shape.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(("data", "labels"), [(LABELLED, False), (UNLABELLED, False), (UNLABELLED, "auto")])
def test_labels_that_are_not_wanted_or_not_there_make_no_classes(data, labels):
    shape = data_shape(data, labels)
    assert shape == DataShape(3, 8, None)
    assert shape.class_names == ()


def test_labels_that_are_wanted_and_not_there_are_refused():
    with pytest.raises(DataError, match="labels: true, but own has none: its images are in no class folders; or set labels"):
        data_shape(UNLABELLED, True)


@pytest.mark.parametrize("labels", [True, False, "auto"])
def test_the_shape_of_data_is_that_of_its_images(labels, tmp_path):
    """That of MNIST is known without reading it."""
    assert load_shape("mnist", None, labels) == data_shape(load("mnist"), labels)
    assert load_shape("mnist", 14, labels) == data_shape(load("mnist", 14), labels)
    own = str(write_digits(tmp_path / "own.npz", 8))
    assert load_shape(own, None, labels) == data_shape(load(own), labels)
