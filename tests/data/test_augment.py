"""Augmentations: what each does, and that they are counted and never measured."""

import numpy as np
import pytest
import torch

from xhat.config.config import Config
from xhat.config.data import build_data
from xhat.data import Augmented, Batch, from_tensors
from xhat.data.augment import crop, flip, shift
from xhat.errors import ConfigError, DataError
from xhat.rng import Shard

IMAGES = torch.randint(0, 256, (200, 2, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_flip_mirrors_the_share_that_it_says():
    chance = torch.tensor([[0.2, 0, 0], [0.3, 0, 0]])
    assert torch.equal(flip(0.25)(IMAGES[:2], chance), torch.stack([IMAGES[0].flip(-1), IMAGES[1]]))
    many = flip()(IMAGES, torch.rand(200, 3, generator=torch.Generator().manual_seed(1)))
    mirrored = sum(bool((a == b.flip(-1)).all()) for a, b in zip(many, IMAGES, strict=True))
    assert 80 < mirrored < 120


@pytest.mark.parametrize("shape", [(5, 2, 9), (5, 2, 6, 8), (5, 2, 4, 5, 6)])
def test_shift_is_a_roll_with_repeated_edges(shape):
    x = torch.randn(shape)
    chance = torch.rand(5, 3, generator=torch.Generator().manual_seed(2))
    found = shift(2)(x, chance)
    for k in range(5):
        moved = [int(5 * float(c)) - 2 for c in chance[k, : x.ndim - 2]]
        padded = np.pad(x[k].numpy(), [(0, 0)] + [(2, 2)] * len(moved), mode="edge")
        cut = tuple(slice(2 - m, 2 - m + side) for m, side in zip(moved, shape[2:], strict=True))
        assert np.array_equal(found[k].numpy(), padded[(slice(None), *cut)])


def test_shift_goes_as_far_as_it_says_and_no_further():
    x = torch.arange(9.0).reshape(1, 1, 9).expand(1000, -1, -1)
    middle = shift(2)(x, torch.rand(1000, 3, generator=torch.Generator().manual_seed(3)))[:, 0, 4]
    assert middle.unique().tolist() == [2, 3, 4, 5, 6]
    assert middle.long().bincount()[2:].min() > 150


def test_crop_of_everything_is_the_image_and_half_a_quarter_of_it():
    chance = torch.rand(4, 3)
    assert torch.equal(crop(1.0)(IMAGES[:4], chance), IMAGES[:4])
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)  # at pixel centres -1 + 2 (k + 1/2)/64, nearly
    quarter = crop(0.5)(ramp, torch.tensor([[0.0, 0.0, 0.5]]))  # the left half
    expected = torch.linspace(-1, 0, 64)
    torch.testing.assert_close(quarter[0, 0, 10], expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("make", "line"),
    [(lambda: shift(0), "1 or more"), (lambda: crop(0), "share of a side"), (lambda: crop(1.5), "share of a side")],
)
def test_amounts_that_mean_nothing_are_refused(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


@pytest.mark.parametrize("way", [flip(), shift(1), crop(0.7)])
def test_the_same_on_any_number_of_processes(way):
    source = Augmented(from_tensors(IMAGES), [way, flip()], seed=3)
    whole = source.get(5, Shard(0, 12), 12).x0
    parts = [source.get(5, Shard(first, 12), 3).x0 for first in range(0, 12, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(source.get(6, Shard(0, 12), 12).x0, whole)
    assert not torch.equal(Augmented(from_tensors(IMAGES), [way, flip()], seed=4).get(5, Shard(0, 12), 12).x0, whole)


def test_what_is_held_out_is_as_it_is():
    plain = from_tensors(IMAGES, held_out=0.2)
    source = Augmented(plain, [flip(1.0)])
    assert torch.equal(source.held_out.get(0, Shard(0, 40), 40).x0, plain.held_out.get(0, Shard(0, 40), 40).x0)
    assert torch.equal(source.get(0, Shard(0, 8), 8).x0, plain.get(0, Shard(0, 8), 8).x0.flip(-1))
    assert source.fingerprint() == plain.fingerprint()


def test_a_config_names_them(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8))
    config = Config(data=str(tmp_path / "a.npy"), augment="flip(1.0), shift(1)", held_out=0.3)
    data, plain = build_data(config), build_data(Config(data=str(tmp_path / "a.npy"), held_out=0.3))
    assert [type(way).__name__ for way in data.train.ways] == ["flip", "shift"]
    assert torch.equal(data.held_out.get(0, Shard(0, 8), 8).x0, plain.held_out.get(0, Shard(0, 8), 8).x0)
    for text, line in (("flipp", "did you mean flip"), ("flip, shift(most=0)", "1 or more"), ("3", "no augmentation")):
        with pytest.raises(ConfigError, match=line):
            build_data(Config(data=str(tmp_path / "a.npy"), augment=text))


def test_what_comes_with_the_samples_must_not_lose_its_place():
    class Masked:
        def get(self, step, shard, rows):
            return Batch(torch.zeros(rows, 1, 4, 4), None, {"mask": torch.zeros(rows, 1, 4, 4)})

        def fingerprint(self):
            return "masks"

    with pytest.raises(DataError, match=r'extra\["mask"\]'):
        Augmented(Masked(), [flip()]).get(0, Shard(0, 2), 2)


def test_crop_of_a_signal_is_refused():
    with pytest.raises(DataError, match="crop is not of samples"):
        Augmented(from_tensors(torch.zeros(20, 1, 9)), [crop()]).get(0, Shard(0, 2), 2)
