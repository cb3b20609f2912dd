"""What is said of images."""

from dataclasses import replace

import pytest
import torch

from xhat.data.images import Found, Images
from xhat.data.summary import notices, summary


def images_of(labels, names=(), side=16, channels=3, **found):
    n = len(labels)
    pixels = torch.arange(n * channels * side * side).remainder(256).to(torch.uint8).reshape(n, channels, side, side)
    return Images(pixels, torch.tensor(labels), max(labels) + 1, "x", names, Found(**found))


@pytest.mark.trap(39)
def test_the_line_about_the_data():
    both = images_of([0] * 21 + [1] * 22, ("cat", "dog"))
    training, aside = both.chosen(torch.arange(2, 43)), both.chosen(torch.arange(2))
    line = "data: 43 images 16x16 colour, pixel range 0 to 255, 2 classes (cat 21, dog 22)"
    assert summary(training, aside, True) == f"{line}; 2 of them held out"
    assert summary(both, None, False) == f"{line} that are not used (--labels true uses them); none held out"
    parts = replace(training, found=Found("train")), replace(aside, found=Found("test"))
    assert summary(*parts, True) == (
        "data: 41 images 16x16 colour (x), pixel range 0 to 255, 2 classes (cat 19, dog 22); 2 more held out"
    )
    unlabelled = Images(both.pixels[:, :1], None, 0, "x", found=Found(scale=(0, 4095), resized=3, unlabelled="why"))
    line = "data: 43 images 16x16 grey, 3 of them resized, pixel range 0 to 255 (made of 0 to 4095), no labels"
    assert summary(unlabelled, None, False) == f"{line}; none held out"
    assert summary(unlabelled, None, False, wanted=True) == f"{line} (why); none held out"


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        (list(range(26)) * 2, tuple(map(str, range(1, 27))), "26 classes (1 to 26, 2 images each)"),
        ([0, 0, 1], (), "2 classes (0 to 1, 1 to 2 images each)"),
        ([0, 0, 1], ("5", "9"), "2 classes (5 2, 9 1)"),
        (list(range(20)), tuple("abcdefghijklmnopqrst"), "20 classes (a 1, b 1, c 1, d 1, e 1, f 1, ..., t 1)"),
        ([0, 1], ("a\nb", "c" * 90), f"2 classes (a b 1, {'c' * 24}... 1)"),
        ([0, 0], ("only",), "1 class (only 2)"),
    ],
)
def test_classes_are_told_in_one_short_line(labels, names, told):
    assert told in summary(images_of(labels, names, side=4), None, True)


def test_notes_and_scaled_values_are_noticed():
    assert notices(images_of([0, 1])) == []
    assert notices(images_of([0, 1], scale=(0, 4095), notes=("one", "two"))) == [
        "one",
        "two",
        "x: values from 0 to 4095 become 0 to 255",
    ]
