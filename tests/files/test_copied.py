"""Files of tensors are what the library would write, and hold what the tensors were when they were copied."""

import pytest
import torch
from safetensors.torch import load, save

from xhat.files.tensors import DTYPES, Copied


@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_bytes_are_as_the_library_writes_them(kind, tmp_path):
    """Every kind of numbers, transposed, expanded, tied, empty and without axes, beside others that are wider."""
    x = torch.arange(12).reshape(3, 4).to(kind)
    tied = x[1]
    some = {
        "b": x.T,
        "a": tied,
        "c": tied,
        "none": x[:0],
        "one": x[0, 0],
        "more": x[:1].expand(3, 4),
        "w": torch.ones(3, dtype=torch.float64),
    }
    copied = Copied(some, {"told": 'ü"'})
    plain = {name: value.contiguous().clone() for name, value in some.items()}
    x.zero_()
    copied.write(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    found, theirs = load(data), load(save(plain))
    assert {name: (v.dtype, v.shape) for name, v in found.items()} == {name: (v.dtype, v.shape) for name, v in theirs.items()}
    assert all(bytes_of(found[name]) == bytes_of(theirs[name]) for name in plain)
    assert (len(data) - sum(v.nbytes for v in plain.values())) % 8 == 0


def bytes_of(x):
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
