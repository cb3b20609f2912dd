"""Files that are read back say whether they are what was written: every bit, every cut, every page of zeros."""

import json
import struct
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from xhat.errors import DamagedError
from xhat.files.seal import FORMAT, KEY
from xhat.files.tensors import read_tensors, write_tensors
from xhat.files.values import read_values, write_values

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "empty": torch.zeros(0, 2)}
METADATA = {"step": "3", "config": json.dumps({"xhat_sha256": "0" * 64, "text": '"xhat_sha256": "'})}


@pytest.fixture
def tensors(tmp_path):
    write_tensors(tmp_path / "file.safetensors", TENSORS, METADATA)
    return tmp_path / "file.safetensors"


@pytest.fixture
def values(tmp_path):
    write_values(tmp_path / "file.json", {"a": 1, "b": [1.5, float("nan")], "c": {"d": "ü"}})
    return tmp_path / "file.json"


def damages(data):
    """Every byte with a bit flipped, cut at every place, and pages of zeros."""
    for place in range(len(data)):
        yield data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]
    for place in range(0, len(data), 3):
        yield data[:place]
        yield data + data[:place] if place else data + b"\0"
    for place in range(0, len(data) - 16, 16):
        if any(data[place : place + 16]):
            yield data[:place] + bytes(16) + data[place + 16 :]


def test_tensors_come_back_and_others_can_read_them(tensors):
    metadata, found = read_tensors(tensors)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert all(torch.equal(value, TENSORS[name]) for name, value in load_file(tensors).items())


@pytest.mark.parametrize("kind", ["tensors", "values"])
def test_no_damage_is_silent(kind, request):
    path = request.getfixturevalue(kind)
    good = path.read_bytes()
    for number, bad in enumerate(damages(good)):
        path.write_bytes(bad)
        with pytest.raises(DamagedError):
            (read_tensors(path), pytest.fail(f"damage {number} was silent")) if kind == "tensors" else (
                read_values(path, dict),
                pytest.fail(f"damage {number} was silent"),
            )


def test_files_of_earlier_versions_and_of_others_have_no_checksum(tmp_path):
    save_file(TENSORS, tmp_path / "of.safetensors", {"format": "pt"})
    assert read_tensors(tmp_path / "of.safetensors")[1].keys() == TENSORS.keys()
    save_file(TENSORS, tmp_path / "of.safetensors")
    assert read_tensors(tmp_path / "of.safetensors")[0] == {}
    (tmp_path / "of.json").write_text('{"a": 1}')
    assert read_values(tmp_path / "of.json", dict[str, int]) == {"a": 1}


def test_a_file_of_this_version_without_its_checksum_is_damaged(tmp_path, tensors, values):
    save_file(TENSORS, tensors, {"format": FORMAT})
    with pytest.raises(DamagedError, match="checksum is missing"):
        read_tensors(tensors)
    values.write_text(json.dumps({"format": FORMAT, "a": 1}))
    with pytest.raises(DamagedError, match="checksum is missing"):
        read_values(values, dict)
    values.write_text(json.dumps({KEY: "0" * 64, "a": 1}))
    with pytest.raises(DamagedError, match="does not agree"):
        read_values(values, dict)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_what_a_header_announces_is_not_allocated(tmp_path, length):
    (tmp_path / "f").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(DamagedError, match="no safetensors file, or cut short"):
        read_tensors(tmp_path / "f")


@pytest.mark.parametrize(
    "header", [b"[" * 50_000, b"{}", b"3", b'{"a":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,16000000000]}}']
)
def test_headers_of_something_else(tmp_path, header):
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(header)) + header + bytes(100))
    with pytest.raises(DamagedError):
        read_tensors(tmp_path / "f")


@pytest.mark.parametrize("text", ["", "[" * 200_000, "{", "nul", '"text"', "[1]", "\x00", '{"a": 1e999999'])
def test_texts_of_something_else(tmp_path, text):
    (tmp_path / "f").write_text(text)
    with pytest.raises(DamagedError):
        read_values(tmp_path / "f", dict[str, int])


def test_values_of_another_type_are_said_with_their_place(values):
    @dataclass
    class Wanted:
        a: int
        c: dict[str, int]

    with pytest.raises(DamagedError, match=r"Expected `int`, got `str` - at `c\[...\]`"):
        read_values(values, Wanted)
    assert json.loads(values.read_text())["c"] == {"d": "ü"}, "others read it as plain JSON"
