"""What is decoded once is known from then on, to all workers: the same batches, without the files."""

import numpy as np
import pytest
import torch
from PIL import Image

from xhat.data import WithNull
from xhat.data.ahead import Ahead, Request
from xhat.data.augment import Augmented, flip, shift
from xhat.data.remembered import Remembered, remembered
from xhat.rng import Shard
from xhat.sources.images import images

N, ROWS = 40, 8


@pytest.fixture
def folder(tmp_path):
    chance = np.random.default_rng(0)
    for number in range(N):
        place = tmp_path / "d" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (8, 8), np.uint8)).save(place / f"{number:03d}.png")
    return tmp_path / "d"


def requests(step):
    while True:
        yield Request(step, Shard(0, ROWS), ROWS)
        step += 1


def batches(source, first, last):
    return [source.get(step, Shard(0, ROWS), ROWS) for step in range(first, last)]


def same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.x0, b.x0, rtol=0, atol=0)
        torch.testing.assert_close(a.cond["label"], b.cond["label"], rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("over", [lambda s: s, lambda s: WithNull(Augmented(s, [flip(), shift(1)]), {"label": 2}, share=0.3)])
def test_files_are_read_in_the_first_epoch_alone(folder, workers, over):
    source = over(images(str(folder), labels=True, held_out=0.0))
    expected = batches(source, 0, 3 * N // ROWS)
    once = remembered(source, 1)
    assert once is not source
    made = Ahead(once, workers, requests) if workers else once
    with made.at_work() if workers else torch.no_grad():
        same(batches(made, 0, N // ROWS + 1), expected[: N // ROWS + 1])
        for step in range(N // ROWS + 1, N // ROWS + 1 + 4 * workers):  # what is on its way is decoded, too
            made.get(step, Shard(0, ROWS), ROWS)
        for path in folder.rglob("*.png"):
            path.unlink()
        same(batches(made, N // ROWS + 1, 3 * N // ROWS), expected[N // ROWS + 1 :])
        assert not workers or made._batches is None  # whom nobody needs any more


def test_what_does_not_fit_is_decoded_each_time(folder, monkeypatch):
    source, size = images(str(folder), held_out=0.0), N * 64
    monkeypatch.setattr("xhat.data.remembered.memory", lambda: 8 * 2 * size)
    assert isinstance(remembered(source, 2), Remembered)
    assert remembered(source, 3) is source  # each process has its own


def test_damaged_files_are_named_and_replaced_as_before(folder):
    damaged = sorted(folder.rglob("*.png"))[3]
    damaged.write_bytes(b"no picture")
    plain, once = (images(str(folder), labels=True, held_out=0.0, skip_corrupt=True) for _ in range(2))
    once = remembered(once, 1)
    same(batches(once, 0, 2 * N // ROWS), batches(plain, 0, 2 * N // ROWS))
    assert once.lost.names == plain.lost.names != {}
