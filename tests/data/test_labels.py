"""Labels as data sets have them, and the parts of an .npz."""

import struct

import numpy as np
import pytest
import torch

from xhat.data.images import Images
from xhat.data.load import load
from xhat.data.parts import load_parts, set_aside
from xhat.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path):
    """Six images beside these arrays, read back."""

    def read(**arrays):
        np.savez(tmp_path / "d.npz", images=PIXELS, **arrays)
        return load(str(tmp_path / "d.npz"))

    return read


@pytest.mark.trap(39)
@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.array([0, 1, 2, 0, 1, 2]), [0, 1, 2, 0, 1, 2], ()),
        (np.array([[0], [1], [2], [0], [1], [2]], np.uint8), [0, 1, 2, 0, 1, 2], ()),
        (np.array([[1, 2, 3, 1, 2, 3]]), [0, 1, 2, 0, 1, 2], ("1", "2", "3")),
        (np.array([5.0, 7.0, 5.0, 7.0, 5.0, 7.0]), [0, 1, 0, 1, 0, 1], ("5", "7")),
        (np.eye(3)[[2, 0, 1, 2, 0, 1]], [2, 0, 1, 2, 0, 1], ()),
        (np.eye(3, dtype=bool)[[2, 0, 0, 2, 0, 0]], [1, 0, 0, 1, 0, 0], ("0", "2")),
        (np.array([True, False] * 3), [1, 0] * 3, ()),
        (np.array(["dog", "cat", "dog", "cat", "cat", "cat"]), [1, 0, 1, 0, 0, 0], ("cat", "dog")),
        (np.array([b"dog", b"cat"] * 3), [1, 0] * 3, ("cat", "dog")),
    ],
    ids=["plain", "column", "row from 1", "whole floats", "one-hot", "one-hot with a gap", "bool", "text", "bytes"],
)
def test_labels_that_name_one_class_each(saved, labels, numbers, names):
    data = saved(labels=labels)
    assert data.labels.tolist() == numbers
    assert (data.names, data.classes) == (names, max(numbers) + 1)


@pytest.mark.trap(39)
@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.array([0, 1, -1, 0, 1, 2]), "go down to -1"),
        (np.array([0.5, 1, 2, 0, 1, 2]), "no whole numbers"),
        (np.array([np.nan, 1, 2, 0, 1, 2]), "no whole numbers"),
        (np.ones((6, 3), int), "not one-hot"),
        (np.full((6, 2), 0.5), "not one-hot"),
        (np.zeros((6, 2, 2), int), "not one per image"),
        (np.array([1j] * 6), "complex"),
    ],
)
def test_labels_that_do_not_are_why_there_are_none(saved, labels, why):
    data = saved(labels=labels)
    assert data.labels is None
    assert why in data.found.unlabelled
    assert "\n" not in data.found.unlabelled


def test_another_number_of_labels_is_refused(saved):
    with pytest.raises(DataError, match="6 images but labels"):
        saved(labels=np.arange(5))


@pytest.mark.trap(39)
def test_classes_without_images_are_noticed_and_no_classes(saved):
    data = saved(labels=np.array([1, 2, 5, 1, 2, 5]))
    assert data.class_names == ("1", "2", "5")
    assert "no image for 2 of the labels 1 to 5" in data.found.notes[0]
    assert saved(labels=np.array([1, 2, 3, 1, 2, 3])).found.notes == ()


@pytest.mark.trap(39)
def test_one_based_labels_of_an_idx_file(tmp_path):
    (tmp_path / "x-images-idx3-ubyte").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, 6, 8, 8) + PIXELS.tobytes())
    assert "x-labels-idx1-ubyte beside it" in load(str(tmp_path / "x-images-idx3-ubyte")).found.unlabelled
    (tmp_path / "x-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 6) + bytes([1, 2, 3, 1, 2, 3]))
    data = load(str(tmp_path / "x-images-idx3-ubyte"))
    assert (data.labels.tolist(), data.names) == ([0, 1, 2, 0, 1, 2], ("1", "2", "3"))


@pytest.mark.trap(39)
@pytest.mark.parametrize(
    "key", ["{part}_images {part}_labels", "x_{part} y_{part}", "{part}_x {part}_y", "X_{part} Y_{part}"], ids=str
)
def test_parts_of_an_npz(tmp_path, key):
    """The training part is read, its test part is held out, classes are numbered alike in both."""
    arrays, (images, labels) = {}, key.split()
    for part, n, first in (("train", 6, 2), ("val", 2, 2), ("test", 4, 3)):
        arrays |= {images.format(part=part): PIXELS[:n] + n, labels.format(part=part): (np.arange(n) % 2 + first)[:, None]}
    np.savez(tmp_path / "d.npz", **arrays)
    training, held_out = load_parts(str(tmp_path / "d.npz"), held_out=0.5)
    assert (len(training), len(held_out)) == (6, 2)
    assert (training.found.part, held_out.found.part) == ("train", "test")
    assert np.array_equal(training.pixels[:, 0].numpy(), PIXELS + 6)
    assert training.names == held_out.names == ("2", "3")
    assert held_out.labels.tolist() == [1, 1], "images of class 4 are not measured: none is trained on"
    assert "left out: 2 images" in held_out.found.notes[-1]


def test_without_a_test_part_there_is_validation_or_a_share(tmp_path):
    many = np.tile(PIXELS, (10, 1, 1))
    np.savez(tmp_path / "a.npz", train_images=many, val_images=PIXELS)
    assert [len(part) for part in load_parts(str(tmp_path / "a.npz"), held_out=0.5)] == [60, 6]
    np.savez(tmp_path / "b.npz", train_images=many)
    assert [len(part) for part in load_parts(str(tmp_path / "b.npz"), held_out=0.5)] == [30, 30]


@pytest.mark.trap(40)
def test_whole_numbers_of_other_types_share_one_scale_over_all_parts(tmp_path):
    np.savez(
        tmp_path / "d.npz", train_images=np.full((2, 4, 4), 1000, np.uint16), test_images=np.full((2, 4, 4), 4000, np.uint16)
    )
    training, held_out = load_parts(str(tmp_path / "d.npz"))
    assert training.found.scale == (0, 4095)
    assert (int(training.pixels[0, 0, 0, 0]), int(held_out.pixels[0, 0, 0, 0])) == (62, 249)
    np.save(tmp_path / "long.npy", PIXELS.astype(np.int64))
    assert np.array_equal(load(str(tmp_path / "long.npy")).pixels[:, 0].numpy(), PIXELS)


@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [
        (0, 1, "save (255 * x).round().astype('uint8')"),
        (-1, 1, "save (127.5 * (x + 1)).round().astype('uint8')"),
        (0, 255, "save x.round().astype('uint8')"),
        (-40, 1013, "fields in other units are read by --data"),
        (0, np.nan, "not finite"),
    ],
)
def test_the_advice_for_floats_is_right_for_their_range(tmp_path, low, high, advice):
    values = np.linspace(low, high, 128).reshape(2, 8, 8)
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError) as caught:
        load(str(tmp_path / "a.npy"))
    assert advice in str(caught.value)
    if "save" in advice:
        np.save(tmp_path / "a.npy", eval(advice.removeprefix("save "), {"x": values}))
        assert load(str(tmp_path / "a.npy")).pixels[:].aminmax() == (0, 255)


@pytest.mark.trap(39)
def test_a_class_keeps_an_image_to_train_on():
    """Whichever images are set aside, also where a class has one image alone."""
    pixels = torch.arange(40).reshape(40, 1, 1, 1).expand(40, 1, 4, 4).to(torch.uint8)
    plain, aside = set_aside(Images(pixels, None, 0, "x"), 0.5)
    chosen = aside.pixels[:, 0, 0, 0].long()
    labels = torch.zeros(40, dtype=torch.long)
    labels[chosen[3]] = 1
    training, aside = set_aside(Images(pixels, labels, 2, "x"), 0.5)
    assert training.labels.bincount().tolist() == [19, 1]
    assert (len(plain), len(training), len(aside)) == (20, 20, 20)
    ids = Images(pixels, torch.arange(40), 40, "x")  # no classes: whatever is set aside has a label of its own
    assert [len(part) for part in set_aside(ids, 0.5)] == [20, 20]


def test_one_image_file_is_no_data_set(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="is one image: name the folder"):
        load(str(tmp_path / "a.png"))


def test_a_test_part_of_other_classes_is_refused_in_words(tmp_path):
    images = np.zeros((20, 8, 8), np.uint8) + 99
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(20) % 2, x_test=images, y_test=np.full(20, 7))
    with pytest.raises(DataError, match="no image is of a class of the training part"):
        load_parts(str(tmp_path / "a.npz"))


def test_parts_of_unlike_depth_say_the_range_of_their_own(tmp_path):
    deep = np.full((20, 8, 8), 60_000, np.uint16)
    np.savez(tmp_path / "a.npz", x_train=np.zeros((20, 8, 8), np.uint8) + 200, x_test=deep)
    training, test = load_parts(str(tmp_path / "a.npz"))
    assert training.found.scale == (0, 255)
    assert (int(training.pixels[:].max()), int(test.pixels[:].max())) == (200, 233)
