"""Batches by number: the same samples however a step is shared out, and labels that are dropped for some of them."""

import pytest
import torch

from xhat.data.images import Images
from xhat.rng import Shard
from xhat.training.batches import Batches

CPU = torch.device("cpu")


def images(n=20, labels=True):
    pixels = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    return Images(pixels, torch.arange(n) % 3 if labels else None, 3 if labels else 0, "x")


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_the_whole_batch_in_parts(parts):
    batches = Batches(images(), 3, CPU, 8, 1, label_dropout=0.5)
    x0, cond = batches.get(5, Shard(0, 8), 8)
    rows = 8 // parts
    pieces = [Batches(images(), 3, CPU, 8, 1, label_dropout=0.5).get(5, Shard(k * rows, 8), rows) for k in range(parts)]
    assert torch.equal(torch.cat([x for x, _ in pieces]), x0)
    assert torch.equal(torch.cat([c["label"] for _, c in pieces]), cond["label"])


def test_an_epoch_visits_each_image_once():
    batches = Batches(images(), None, CPU, 5, 1)
    seen = torch.cat([batches.get(step, Shard(0, 5), 5)[0][:, 0, 0, 0] for step in range(4)])
    expected = torch.arange(20) / 127.5 - 1
    torch.testing.assert_close(seen.sort().values, expected)


def test_a_share_of_the_labels_becomes_the_null_class():
    batches = Batches(images(), 3, CPU, 10, 1, label_dropout=0.3)
    labels = torch.cat([batches.get(step, Shard(0, 10), 10)[1]["label"] for step in range(200)])
    assert float((labels == 3).float().mean()) == pytest.approx(0.3, abs=0.04)  # four standard errors
    x0, cond = Batches(images(), 3, CPU, 10, 1).get(0, Shard(0, 10), 10)
    assert torch.equal(cond["label"], ((x0[:, 0, 0, 0] + 1) * 127.5).round().long() % 3), "each image with its own"


def test_a_network_that_takes_no_labels_gets_none():
    assert Batches(images(), None, CPU, 8, 1).get(0, Shard(0, 8), 8)[1] is None
    assert Batches(images(labels=False), None, CPU, 8, 1).get(0, Shard(0, 8), 8)[1] is None


def test_the_fingerprint_is_of_the_images_and_of_labels_that_are_told():
    data = images()
    other = Images(data.pixels, 2 - data.labels, 3, "x")
    told, untold = (Batches(data, c, CPU, 8, 1).fingerprint() for c in (3, None))
    assert Batches(other, 3, CPU, 8, 1).fingerprint() != told
    assert Batches(other, None, CPU, 8, 1).fingerprint() == untold
    assert Batches(data, 3, CPU, 4, 2).fingerprint() == told
