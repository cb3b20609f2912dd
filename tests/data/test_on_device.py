"""Data that lie on the device: the same batches, and only of what is the same each time and fits."""

import pytest
import torch

from xhat.data import WithNull, from_dataset, from_tensors
from xhat.data.on_device import OnDevice, free_memory, on_device
from xhat.rng import Shard

CPU, ROOM = torch.device("cpu"), 2**30
X0, LABEL = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8), torch.arange(50) % 3


def batches(source):
    return [source.get(step, Shard(first, 8), 4) for step in range(9) for first in (0, 4)]


def same(one, other):
    for a, b in zip(batches(one), batches(other), strict=True):
        assert (a.x0.dtype, a.extra, set(a.cond or {})) == (b.x0.dtype, b.extra, set(b.cond or {}))
        torch.testing.assert_close(a.x0, b.x0, rtol=0, atol=0)
        for name in a.cond or {}:
            torch.testing.assert_close(a.cond[name], b.cond[name], rtol=0, atol=0)


@pytest.mark.parametrize("cond", [None, {"label": LABEL}, {"label": LABEL, "size": torch.rand(50, 2)}])
def test_batches_are_those_of_the_source(cond, monkeypatch):
    monkeypatch.setattr("xhat.data.on_device.PART", 1000)  # read in several parts
    source = from_tensors(X0, cond, held_out=0.0)
    near = on_device(source, CPU, ROOM)
    assert isinstance(near, OnDevice)
    assert (near.fingerprint(), len(near), near.shape) == (source.fingerprint(), len(source), source.shape)
    same(source, near)


def test_labels_are_left_out_as_of_the_source():
    source = WithNull(from_tensors(X0, {"label": LABEL}), {"label": 3}, share=0.5)
    near = on_device(source, CPU, ROOM)
    assert isinstance(near.source, OnDevice)
    assert not isinstance(source.source, OnDevice)  # which stays as it was
    same(source, near)
    assert any((batch.cond["label"] == 3).any() for batch in batches(near))


def test_what_changes_or_does_not_fit_stays_where_it_is():
    """A Dataset may change its samples each time; extras may be anything."""
    plain = from_tensors(X0, held_out=0.0)
    size = X0[0].numel() * len(X0)
    assert on_device(plain, CPU, 8 * size - 1) is plain
    assert isinstance(on_device(plain, CPU, 8 * size), OnDevice)
    for other in (from_dataset(list(X0.float())), from_tensors(X0, extra={"prompt": ["a"] * 50})):
        assert on_device(other, CPU, ROOM) is other
    assert free_memory(CPU) == 0
