"""Fields: what a file holds is what the network sees, normalised by hand; and what comes out is in the user's units."""

import numpy as np
import pytest
import torch
from PIL import Image

from xhat.config.config import Config
from xhat.config.data import build_data, in_memory, is_source
from xhat.config.expressions import evaluate
from xhat.config.paths import arguments, with_quotes
from xhat.data.units import Units, given, log, min_max
from xhat.errors import ConfigError, DataError, DataNotFoundError
from xhat.registry import DATA, MAPS, UNITS
from xhat.rng import Shard
from xhat.sources.fields import fields

RNG = np.random.default_rng(0)
TWO = (RNG.normal(size=(60, 2, 4, 6)) * [[[[3.0]], [[1e-4]]]] + [[[[100.0]], [[-2e-4]]]]).astype(np.float32)


def saved(place, values, name="a.npy"):
    np.save(place / name, values)
    return str(place / name)


def physical(source, count=8):
    batch = source.get(0, Shard(0, count), count)
    return source.units(batch.x0), source.order.indices(0, count)


def test_values_and_their_normalisation_by_hand(tmp_path):
    source = fields(saved(tmp_path, TWO), held_out=0.0)
    mean, deviation = TWO.astype(np.float64).mean((0, 2, 3)), TWO.astype(np.float64).std((0, 2, 3))
    np.testing.assert_allclose(source.units.shift, mean, rtol=1e-12)
    np.testing.assert_allclose(source.units.scale, deviation, rtol=1e-10)
    x0, index = source.get(0, Shard(0, 8), 8).x0, source.order.indices(0, 8)
    expected = (TWO[index] - mean.reshape(2, 1, 1)) / deviation.reshape(2, 1, 1)
    np.testing.assert_allclose(x0, expected, rtol=2e-4, atol=2e-4)
    back, _ = physical(source)
    np.testing.assert_allclose(back, TWO[index], rtol=1e-6, atol=1e-8)
    assert source.shape.sample == (2, 4, 6)
    assert not source.shape.is_picture


def test_statistics_are_of_the_training_samples_alone(tmp_path):
    values = RNG.normal(size=(400, 3)).astype(np.float32)
    path = saved(tmp_path, values)
    source = fields(path, held_out=0.2)
    train = torch.cat([source.get(k, Shard(0, 64), 64).x0 for k in range(5)])[:320]
    held = source.held_out.get(0, Shard(0, 80), 80).x0
    torch.testing.assert_close(train.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(0, unbiased=False), torch.ones(3), atol=1e-6, rtol=0)
    assert held.mean(0).abs().min() > 1e-3
    together = torch.cat([source.units(train), source.units(held)])
    np.testing.assert_allclose(np.sort(together[:, 0]), np.sort(values[:, 0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", [2, 3, 7, 10**9])
def test_the_statistics_do_not_depend_on_the_parts_that_are_read(tmp_path, monkeypatch, part):
    values = RNG.normal(size=(31, 2, 5)) + 1e6
    whole = fields(saved(tmp_path, values), held_out=0.0)
    monkeypatch.setattr("xhat.data.stack.PART", part * values[0].nbytes)
    again = fields(saved(tmp_path, values), held_out=0.0)
    np.testing.assert_allclose(again.units.shift, whole.units.shift, rtol=1e-14)
    np.testing.assert_allclose(again.units.scale, values.std((0, 2)), rtol=1e-9)
    assert again.fingerprint().split(" Units")[0] == whole.fingerprint().split(" Units")[0]


@pytest.mark.parametrize("dtype", ["float64", ">f4", "float16", "int32", ">u2", "uint8", "int8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_and_orders(tmp_path, dtype, order):
    values = (RNG.normal(size=(20, 2, 6)) * 20 + 60).clip(0, 120)
    typed = np.asarray(values, dtype=dtype, order=order)
    source = fields(saved(tmp_path, typed), units=given(0.0, 1.0), held_out=0.0)
    found, index = physical(source)
    np.testing.assert_allclose(found, np.asarray(typed[index], np.float64), rtol=1e-6)


def test_deep_whole_numbers_are_on_one_scale(tmp_path):
    values = RNG.integers(0, 3000, (20, 2, 4, 4)).astype(np.uint16)
    values[0, 0, 0, 0] = 2900
    source = fields(saved(tmp_path, values), held_out=0.0)
    assert source.units == Units((2047.5,), (2047.5,))
    root = tmp_path / "d"
    root.mkdir()
    for k, value in enumerate(values):
        Image.fromarray(value[0]).save(root / f"{k:02d}.png")
    folder = fields(str(root), held_out=0.0, units=given(0.0, 1.0))
    found, index = physical(folder)
    assert np.array_equal(found[:, 0].numpy().astype(np.uint16), values[index, 0])


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -2, None])
def test_where_the_channels_are(tmp_path, axis):
    base = RNG.normal(size=(20, 3, 4, 5)).astype(np.float32)
    given_ = base[:, 0] if axis is None else np.moveaxis(base, 1, axis)
    source = fields(saved(tmp_path, given_), channel_axis=axis, units=given(0.0, 1.0), held_out=0.0)
    found, index = physical(source)
    expected = base[:, :1] if axis is None else base
    np.testing.assert_allclose(found, expected[index])


def test_many_channels_are_asked_about(tmp_path):
    path = saved(tmp_path, RNG.normal(size=(20, 64, 64)).astype(np.float32))
    with pytest.raises(DataError, match=r"are its samples \(64, 64\) of 64 channels\? say channel_axis=1 if they are, None if"):
        fields(path)
    assert fields(path, channel_axis=None).shape.sample == (1, 64, 64)
    assert fields(path, channel_axis=1).shape.sample == (64, 64)
    with pytest.raises(DataError, match="it is 1 to 2, or None"):
        fields(path, channel_axis=4)


def test_several_files_are_channels_and_raw_bytes_are_read(tmp_path):
    first, second = TWO[:, :1], TWO[:, 1:]
    saved(tmp_path, first, "k.npy")
    second.astype(">f8").tofile(tmp_path / "p.raw")
    both = fields(saved(tmp_path, TWO), held_out=0.0)
    raw = fields(str(tmp_path / "p.raw"), dtype=">f8", shape=(-1, 1, 4, 6), held_out=0.0)
    assert raw.shape.sample == (1, 4, 6)
    np.savez(tmp_path / "two.npz", k=first, p=second)
    parts = fields(str(tmp_path / "k.npy"), saved(tmp_path, second, "p.npy"), held_out=0.0)
    assert torch.equal(parts.get(3, Shard(0, 8), 8).x0, both.get(3, Shard(0, 8), 8).x0)
    assert fields(str(tmp_path / "two.npz"), array="p").shape.sample == (1, 4, 6)
    for make, line in (
        (lambda: fields(str(tmp_path / "two.npz")), "which array. array='...' is one of k, p"),
        (lambda: fields(str(tmp_path / "p.raw")), "is no NumPy file: of raw bytes say what they are"),
        (lambda: fields(str(tmp_path / "p.raw"), dtype="float32", shape=(-1, 7)), "see to dtype and shape"),
        (lambda: fields(str(tmp_path / "p.raw"), dtype="floaty", shape=(-1, 4)), "none that NumPy knows"),
        (lambda: fields(str(tmp_path / "k.npy"), saved(tmp_path, TWO[:3], "x.npy")), "stacked as channels, they differ"),
        (lambda: fields(str(tmp_path / "none.npy")), "does not exist"),
        (lambda: fields(), "names no file"),
    ):
        with pytest.raises(DataError, match=line):
            make()


def test_a_folder_of_arrays_each_a_sample(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(20):
        np.save(root / f"{k:02d}.npy", TWO[k])
    source = fields(str(root), held_out=0.0)
    whole = fields(saved(tmp_path, TWO[:20]), held_out=0.0)
    assert torch.equal(source.get(0, Shard(0, 8), 8).x0, whole.get(0, Shard(0, 8), 8).x0)
    np.save(root / "20.npy", TWO[0, :1])
    with pytest.raises(DataError, match=r"20\.npy is \(1, 4, 6\), 00\.npy \(2, 4, 6\): all need one shape"):
        fields(str(root))


def test_labels_and_a_null_class(tmp_path):
    np.save(tmp_path / "l.npy", np.arange(60) % 3)
    data = build_data(
        Config(data=f"fields({saved(tmp_path, TWO)}, label={tmp_path / 'l.npy'})", label_dropout=0.5, held_out=0.3)
    )
    batch = data.train.get(0, Shard(0, 40), 40)
    assert data.shape.classes == 3
    assert set(batch.cond["label"].tolist()) == {0, 1, 2, 3}
    plain = data.train.source.get(0, Shard(0, 40), 40)
    back = data.shape.units(plain.x0)
    number = [int(np.abs(TWO - one.numpy()).reshape(60, -1).max(1).argmin()) for one in back]
    assert plain.cond["label"].tolist() == [k % 3 for k in number]


def test_corrupt_samples_are_named_left_out_and_counted(tmp_path):
    bad = TWO.copy()
    bad[7, 0, 1, 1], bad[31, 1] = np.nan, np.inf
    path = saved(tmp_path, bad)
    with pytest.raises(DataError, match=r"2 samples with values that are not finite, number 7, 31: .*--skip_corrupt true"):
        fields(path)
    source = fields(path, skip_corrupt=True, held_out=0.3)
    assert source.left_out == 2
    assert len(source) + len(source.held_out) == 58
    assert source.notes == (f"{path}: left out: 2 samples that are not finite, number 7, 31",)
    seen = source.get(0, Shard(0, len(source)), len(source)).x0
    assert bool(seen.isfinite().all())
    with pytest.raises(DataError, match=r"have no value after log\(offset=0.0\), number 0, .*choose an offset"):
        fields(saved(tmp_path, TWO), units=min_max(log()))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.zeros((5, 3), complex), "complex"),
        (np.zeros((0, 3)), "its shape is"),
        (np.zeros(7), "give (N, ...)"),
        (np.array([["a", "b"]]), "give whole numbers, or floats of at most 64 bits"),
    ],
)
def test_what_is_no_field_is_refused(tmp_path, values, line):
    with pytest.raises(DataError, match=line.replace("(", r"\(").replace(")", r"\)")):
        fields(saved(tmp_path, values))


def test_other_data_are_measured_in_the_units_of_those_trained_on(tmp_path):
    source = fields(saved(tmp_path, TWO), held_out=0.0)
    other = fields(saved(tmp_path, 2 * TWO + 1, "b.npy"), held_out=0.0)
    images = in_memory(other, source.shape, "b")
    back = source.units(images.pixels)
    assert other.units != source.units
    np.testing.assert_allclose(back[:8], (2 * TWO + 1)[other.order.indices(0, 8)], rtol=1e-5)


NAMES = {**DATA, **UNITS, **MAPS}


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("fields(darcy.npy)", "fields('darcy.npy')"),
        ("fields(runs/a b/darcy.npy, units=standard)", "fields('runs/a b/darcy.npy', units=standard)"),
        ("fields(/tmp/k.npy, ~/p.npy, channel_axis=-1)", "fields('/tmp/k.npy', '~/p.npy', channel_axis=-1)"),
        ("fields('a,b.npy', dtype=float32, shape=(-1, 2))", "fields('a,b.npy', dtype='float32', shape=(-1, 2))"),
        ("fields(darcy, units=standard(log(0.1)), array=None)", "fields('darcy', units=standard(log(0.1)), array=None)"),
        ("webdataset(t-{000..009}.tar)", "webdataset('t-{000..009}.tar')"),
        ("parquet(C:\\data\\x.parquet)", "parquet('C:\\\\data\\\\x.parquet')"),
        ("mine(darcy.npy)", "mine(darcy.npy)"),
        ("data/folder (1)", "data/folder (1)"),
        ("mnist", "mnist"),
    ],
)
def test_paths_need_no_quotes(text, quoted):
    found = with_quotes(text, NAMES)
    assert found.replace(" ", "") == quoted.replace(" ", "")
    assert is_source(text) == (quoted != text)


def test_arguments_stand_between_commas():
    assert [a.strip() for a in arguments("flip, shift(2), f(',', (1, 2)), 'a,b'")] == [
        "flip",
        "shift(2)",
        "f(',', (1, 2))",
        "'a,b'",
    ]


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="unknown name"):
        evaluate(with_quotes("fields(a.npy, units=standart())", NAMES), NAMES)
    with pytest.raises(DataNotFoundError, match="does not exist"):
        evaluate(with_quotes("fields(a.npy)", NAMES), NAMES)
