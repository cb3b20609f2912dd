"""A stack is a tensor that is not there yet: every way to ask for samples gives what the tensor gives, and reads no others."""

import numpy as np
import pytest
import torch

from xhat.data.images import Images
from xhat.data.load import load
from xhat.data.parts import in_channels, set_aside
from xhat.data.stack import Stack, parts_of, view_of

VALUES = torch.arange(7 * 3 * 4).reshape(7, 3, 4)


def counted():
    """A stack of VALUES, and which samples were read of it."""
    read = []

    def at(which):
        numbers = np.arange(7)[which] if isinstance(which, slice) else which
        read.extend(numbers.tolist())
        return VALUES[torch.from_numpy(np.asarray(numbers))]

    return Stack(at, 7, (3, 4), VALUES.dtype), read


@pytest.mark.parametrize(
    "key",
    [
        *(0, -1, slice(None), slice(2, 5), slice(-3, None), slice(0, 7, 2), torch.tensor([6, 0, 0]), VALUES[:, 0, 0] > 20),
        *((slice(None), 1), (2, 1), (torch.tensor([1, 2]), slice(0, 2), 3)),
    ],
    ids=str,
)
def test_it_is_indexed_as_a_tensor(key):
    stack, _ = counted()
    assert torch.equal(stack[key], VALUES[key])
    index = torch.tensor([5, 1, 1, 6])
    if not isinstance(key, int | slice | torch.Tensor) or (isinstance(key, torch.Tensor) and len(key) == 7):
        return
    inside = key.clamp(max=3) if isinstance(key, torch.Tensor) else key
    assert torch.equal(view_of(stack, index)[inside], VALUES[index][inside])


def test_only_what_is_asked_for_is_read():
    stack, read = counted()
    part = stack.chosen(torch.tensor([4, 2, 0])).chosen(torch.tensor([2, 1]))
    assert part.shape == (2, 3, 4)
    assert read == []
    assert torch.equal(part[1], VALUES[2])
    assert read == [2]


def test_what_is_made_of_it_is_made_when_it_is_read():
    stack, read = counted()
    doubled = stack.each(lambda part: 2 * part[:, :1], (1, 4), VALUES.dtype).chosen(torch.tensor([3, 5]))
    assert read == []
    assert torch.equal(doubled[:], 2 * VALUES[[3, 5]][:, :1])


def test_its_parts_are_all_of_it(monkeypatch):
    monkeypatch.setattr("xhat.data.stack.PART", 3 * 4 * 8 * 2)  # two samples
    stack, _ = counted()
    parts = list(parts_of(stack))
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    assert torch.equal(torch.cat(parts), VALUES)


@pytest.mark.parametrize("shape", [(9, 8, 8), (9, 8, 8, 3), (9, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mapped_file_and_an_array_in_memory_are_the_same_images(tmp_path, shape, dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", values)
    mapped, unpacked = (load(str(tmp_path / name)) for name in ("a.npy", "a.npz"))
    assert mapped.fingerprint() == unpacked.fingerprint()
    assert torch.equal(mapped.pixels[:], unpacked.pixels[:])
    assert mapped.extremes == tuple(map(float, mapped.pixels[:].aminmax()))
    colour = in_channels(mapped, 3).pixels
    assert colour.shape == (9, 3, 8, 8)
    assert torch.equal(colour[2:4], mapped.pixels[2:4].expand(-1, 3, -1, -1))


def test_what_is_set_aside_is_what_it_was_when_it_was_copied():
    pixels = torch.randint(0, 256, (400, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(400) % 3, 3, "x")
    train, held_out = set_aside(images, 0.1)
    kept = set(range(400)) - {int(k) for k in range(400) if any(torch.equal(pixels[k], p) for p in held_out.pixels)}
    assert len(held_out) == 40
    assert len(kept) == len(train) == 360
    copied = Images(train.pixels[:], train.labels, 3, "x")
    assert copied.fingerprint() == train.fingerprint()
    assert torch.equal(train.pixels[:], pixels[sorted(kept)])


def test_a_file_that_shrinks_is_said_in_one_line(tmp_path):
    np.save(tmp_path / "a.npy", np.full((64, 8, 8), 200, np.uint8))
    images = load(str(tmp_path / "a.npy"))
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="has changed since it was opened"):
        images.pixels[3]
