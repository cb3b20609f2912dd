"""Faults that somebody found in fields, each with the input that showed it."""

import ast
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import TINY, xhat
from xhat.data.arrays import opened
from xhat.data.units import given
from xhat.errors import ConfigError, DataError
from xhat.rng import Shard
from xhat.sources.fields import fields

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(40, 1, 8, 8))


def saved(place, values, name="a.npy"):
    np.save(place / name, values)
    return str(place / name)


def all_of(source):
    x0 = source.get(0, Shard(0, len(source)), len(source)).x0
    return source.units(x0), source.order.indices(0, len(source))


def train(place, data, *more):
    return ("train", "mnist", "--data", data, "--run", place / "run", "--max_steps", 1, *TINY, *more)


def test_files_of_several_types_become_one_that_holds_all(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(8):
        np.save(root / f"{k}.npy", VALUES[k].astype(np.int16) if k == 0 else VALUES[k])
    found, index = all_of(fields(str(root), units=given(), held_out=0.0))
    expected = VALUES[:8].copy()
    expected[0] = expected[0].astype(np.int16)
    np.testing.assert_allclose(found, expected[index], rtol=1e-6)
    np.save(root / "8.npy", VALUES[0] + 1j)
    with pytest.raises(DataError, match=r"8\.npy: its values are complex"):
        fields(str(root))


def test_a_parser_that_fails_because_of_another_thread_says_nothing_of_the_file(tmp_path, monkeypatch):
    """python/cpython#106905: seen once in 5,000 headers that eight threads read."""
    path, calls, parse = tmp_path / "x.npy", [], ast.parse
    np.save(path, VALUES)

    def failing(*given, **more):
        calls.append(0)
        if len(calls) % 2:
            raise SystemError("AST constructor recursion depth mismatch (before=36, after=33)")
        return parse(*given, **more)

    monkeypatch.setattr(ast, "parse", failing)
    np.testing.assert_array_equal(opened(path)["images"], VALUES)
    assert len(calls) == 4  # two headers are read: to see that it is whole, and to map it


def test_images_of_8_and_16_bits_are_not_mixed(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(4):
        Image.fromarray(np.full((8, 8), 200 if k == 0 else 60000, np.uint8 if k == 0 else np.uint16)).save(root / f"{k}.png")
    with pytest.raises(DataError, match="images of uint16 and uint8: save all of them with the same bits"):
        fields(str(root))


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_damaged_file_of_a_folder_is_refused_or_left_out(tmp_path, capsys, kind):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(24):
        if kind == "png":
            Image.fromarray(RNG.integers(0, 60000, (8, 8)).astype(np.uint16)).save(root / f"{k}.png")
        else:
            np.save(root / f"{k}.npy", VALUES[k])
    (root / f"zz.{kind}").write_bytes(b"xx")
    code, _, err = xhat(*train(tmp_path, f"fields({root})"), capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert f"zz.{kind}" in err
    assert "--skip_corrupt true" in err
    code, _, err = xhat(*train(tmp_path, f"fields({root})", "--skip_corrupt", "true"), capsys=capsys)
    assert code == 0, err
    assert "left out: 1 file that cannot be read" in err


def test_files_of_a_folder_are_in_the_order_of_their_numbers(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(12):
        np.save(root / f"s{k}.npy", VALUES[k])
    np.save(tmp_path / "l.npy", np.arange(12))
    source = fields(str(root), label=str(tmp_path / "l.npy"), units=given(), held_out=0.0)
    batch = source.get(0, Shard(0, 12), 12)
    np.testing.assert_allclose(batch.x0, VALUES[batch.cond["label"]], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e39, 1e-50, 1e300])
def test_values_that_float32_does_not_have(tmp_path, capsys, scale):
    path = saved(tmp_path, VALUES * scale)
    if scale == 1e300:  # whose squares float64 does not have
        code, _, err = xhat(*train(tmp_path, f"fields({path})"), capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert "cannot be computed: rescale them" in err
        return
    found, index = all_of(fields(path, held_out=0.0))
    np.testing.assert_allclose(found / scale, VALUES[index], rtol=1e-5, atol=1e-6)
    assert xhat(*train(tmp_path, f"fields({path})"))[0] == 0
    assert xhat("sample", tmp_path / "run", "--n", 4, "--out", tmp_path / "s.npy")[0] == 0
    samples = np.load(tmp_path / "s.npy")
    assert 0.01 * scale < samples.std() < 100 * scale


def test_values_whose_squares_vanish_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be computed: rescale them"):
        fields(saved(tmp_path, VALUES * 1e-300))


@pytest.mark.parametrize("offset", [1e6, 1e9])
def test_a_small_spread_on_a_large_offset_stays(tmp_path, offset):
    values = offset + 1e-3 * VALUES
    path = saved(tmp_path, values)
    found, index = all_of(fields(path, held_out=0.0))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found - offset, (values - offset)[index], atol=2e-6 if offset == 1e9 else 1e-8)
    assert xhat(*train(tmp_path, f"fields({path})"))[0] == 0
    assert xhat("sample", tmp_path / "run", "--n", 4, "--out", tmp_path / "s.npy")[0] == 0
    assert np.load(tmp_path / "s.npy").std() > 1e-5


def test_other_labels_are_other_data(tmp_path, capsys):
    data = f"fields({saved(tmp_path, VALUES)}, label={saved(tmp_path, np.arange(40) % 3, 'l.npy')})"
    assert xhat(*train(tmp_path, data))[0] == 0
    np.save(tmp_path / "l.npy", (np.arange(40) + 1) % 3)
    code, _, err = xhat("train", "--run", tmp_path / "run", "--resume", "--max_steps", 2, capsys=capsys)
    assert code == 2
    assert "the data are not those" in err


@pytest.mark.parametrize("kind", ["fields", "images"])
@pytest.mark.parametrize("change", ["replaced", "touched", "gone"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, kind, change):
    from xhat.data.load import load

    values = VALUES if kind == "fields" else (VALUES[:, 0] * 40 + 128).clip(0, 255).astype(np.uint8)
    path = saved(tmp_path, values)
    opened = fields(path) if kind == "fields" else load(path)

    def read():
        return opened.get(0, Shard(0, 4), 4) if kind == "fields" else opened.pixels[:4]

    read()
    if change == "replaced":
        np.save(path, values[::-1])
    elif change == "touched":
        os.utime(path, (0, 0))
    else:
        os.unlink(path)
    with pytest.raises(DataError, match="cannot be read any more" if change == "gone" else "has changed since it was opened"):
        read()


def test_a_header_is_no_sample(tmp_path):
    path = saved(tmp_path, VALUES)
    with pytest.raises(DataError, match="which says itself what it holds: leave dtype and shape out"):
        fields(path, dtype="f4", shape=(-1, 8, 8))


def test_what_is_left_out_is_said(tmp_path, capsys):
    values = VALUES.copy()
    values[3] = np.nan
    path = saved(tmp_path, values)
    code, _, err = xhat(*train(tmp_path, f"fields({path})", "--skip_corrupt", "true"), capsys=capsys)
    assert code == 0
    assert "left out: 1 sample that are not finite, number 3" in err


def test_a_constant_channel_is_noted_and_measured_as_none(tmp_path, capsys):
    values = np.concatenate([VALUES, np.full_like(VALUES, 5.5)], 1)
    path = saved(tmp_path, values)
    code, _, err = xhat(*train(tmp_path, f"fields({path})"), capsys=capsys)
    assert code == 0
    assert "channel 1 is 5.5 everywhere" in err
    assert xhat("sample", tmp_path / "run", "--n", 4, "--out", tmp_path / "s.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "s.npy")[:, 1], 5.5, atol=0.1)
    code, out, _ = xhat("evaluate", tmp_path / "run", "--n", 8, "--images", 4, capsys=capsys)
    assert code == 0
    assert not re.search(r"\d{9}", out)


@pytest.mark.parametrize("types", [("uint16", "int32"), ("uint16", "uint8"), ("uint64", "int64"), ("int8", "float32")])
def test_files_of_other_whole_numbers_are_channels(tmp_path, types):
    first, second = (RNG.integers(0, 100, (20, 1, 8)).astype(kind) for kind in types)
    found, index = all_of(fields(saved(tmp_path, first), saved(tmp_path, second, "b.npy"), units=given(), held_out=0.0))
    np.testing.assert_allclose(found, np.concatenate([first, second], 1)[index].astype(float))


@pytest.mark.parametrize(
    ("values", "more", "line"),
    [
        (VALUES.astype(np.longdouble), {}, "floats of at most 64 bits"),
        (VALUES, {"channel_axis": True}, "channel_axis is a whole number or None"),
        (VALUES, {"held_out": 2.0}, "a share of 0 to 0.5"),
        (VALUES, {"held_out": -1.0}, "a share of 0 to 0.5"),
        (np.moveaxis(np.repeat(VALUES, 2, 1), 1, -1), {}, "channel_axis=-1 if it is the last"),
    ],
)
def test_mistakes_say_what_to_change(tmp_path, values, more, line):
    with pytest.raises(DataError, match=line):
        fields(saved(tmp_path, values), **more)


def test_mistakes_of_raw_files_and_labels(tmp_path):
    (tmp_path / "e.raw").write_bytes(b"")
    with pytest.raises(DataError, match="see to dtype and shape"):
        fields(str(tmp_path / "e.raw"), dtype="f4", shape=(-1, 4))
    with pytest.raises(DataError, match="is a folder"):
        fields(saved(tmp_path, VALUES), label=str(tmp_path))
