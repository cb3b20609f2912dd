"""Parquet, data sets of Hugging Face, shards and folders: the same pictures, the same order on any number of processes."""

import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import TINY, xhat
from xhat.config.config import Config
from xhat.config.data import build_data, in_words
from xhat.data import WithNull
from xhat.data.ahead import Ahead, Request, is_slow
from xhat.errors import DataError, DataNotFoundError
from xhat.rng import Shard
from xhat.sources.images import images
from xhat.sources.shards import webdataset
from xhat.sources.table_streams import huggingface_stream
from xhat.sources.tables import huggingface, parquet

COUNT, SIDE = 90, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE), dtype=np.uint8)
PIXELS[:, 0, 0] = np.arange(COUNT)  # which is which
LABELS = np.arange(COUNT) % 3


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("pictures")
    rows = {
        "image": [{"bytes": png(values), "path": None} for values in PIXELS],
        "digit": LABELS.tolist(),
        "text": [f"a {label}" for label in LABELS],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "digit": datasets.ClassLabel(names=["zero", "one", "two"]),
            "text": datasets.Value("string"),
        }
    )
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(root / "all.parquet"))
    table.save_to_disk(str(root / "disk"))
    for part in range(3):
        table.select(range(30 * part, 30 * part + 30)).to_parquet(str(root / f"many-{part}.parquet"))
    bare = datasets.Dataset.from_dict({"img": [png(values) for values in PIXELS], "digit": LABELS.tolist()})
    bare.select(range(40)).to_parquet(str(root / "bare-0.parquet"))
    bare.select(range(40, COUNT)).to_parquet(str(root / "bare-1.parquet"))
    for shard in range(3):
        with tarfile.open(root / f"t-{shard:03d}.tar", "w") as tar:
            for k in range(30 * shard, 30 * shard + 30):
                for suffix, data in (
                    ("png", png(PIXELS[k])),
                    ("cls", str(LABELS[k]).encode()),
                    ("txt", f"a {LABELS[k]}".encode()),
                ):
                    member = tarfile.TarInfo(f"{k:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for k in range(COUNT):
        folder = root / "folder" / ["a", "b", "c"][LABELS[k]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:04d}.png").write_bytes(png(PIXELS[k]))
    return root


SOURCES = {
    "parquet": lambda p, **k: parquet(str(p / "all.parquet"), label="digit", caption="text", **k),
    "bare parquet": lambda p, **k: parquet(str(p / "bare-*.parquet"), label="digit", **k),
    "disk": lambda p, **k: huggingface(str(p / "disk"), label="digit", caption="text", **k),
    "folder": lambda p, **k: images(str(p / "folder"), labels=True, **k),
    "shards": lambda p, **k: webdataset(str(p / "t-{000..002}.tar"), label="cls", caption="txt", shuffle=20, **k),
    "stream": lambda p, held_out=0.2, **k: huggingface_stream(
        str(p / "all.parquet"), label="digit", caption="text", shuffle=20, measured=int(held_out * 90), **k
    ),
    "stream of several": lambda p, held_out=0.2, **k: huggingface_stream(
        str(p / "many-*.parquet"), label="digit", caption="text", shuffle=20, measured=int(held_out * 90), **k
    ),
    "stream of disk": lambda p, held_out=0.2, **k: huggingface_stream(
        str(p / "disk"), label="digit", shuffle=20, measured=int(held_out * 90), **k
    ),
}
EACH = pytest.mark.parametrize("kind", SOURCES)


def numbers(batch):
    """Which samples they are."""
    return batch.x0[:, 0, 0, 0].tolist()


@EACH
def test_pixels_labels_and_captions_are_those_of_the_data(place, kind):
    source = SOURCES[kind](place, held_out=0.2)
    assert source.shape.sample == (1, SIDE, SIDE)
    assert source.shape.classes == 3
    for part in (source, source.held_out):
        batch = part.get(0, Shard(0, 15), 15)
        for x0, label, number in zip(batch.x0, batch.cond["label"].tolist(), numbers(batch), strict=True):
            assert np.array_equal(x0[0].numpy(), PIXELS[number])
            assert label == LABELS[number]
        if batch.extra:
            assert batch.extra["prompt"] == [f"a {LABELS[n]}" for n in numbers(batch)]
    assert ("folder" in kind or "bare" in kind or "disk" in kind) or source.get(0, Shard(0, 2), 2).extra is not None
    assert is_slow(source)


@EACH
def test_a_pass_is_all_of_them_once_and_none_that_is_held_out(place, kind):
    source = SOURCES[kind](place, held_out=0.2)
    held = source.held_out
    out = set(numbers(held.get(0, Shard(0, 40), 40)))  # all of them, and some of them again
    length = COUNT - len(out)
    assert 8 < len(out) < 30
    first = numbers(source.get(0, Shard(0, length), length))
    second = numbers(source.get(1, Shard(0, length), length))
    assert sorted(first) == sorted(second) == sorted(set(range(COUNT)) - out)
    assert first != second
    assert first != sorted(first)


@EACH
def test_the_same_batches_on_any_number_of_processes_and_after_a_resume(place, kind):
    def batches(ranks, steps=9, start=0):
        """Of each step the samples of all ranks, in their order."""
        sources = [SOURCES[kind](place) for _ in range(ranks)]
        rows = 16 // ranks
        return [
            [n for rank, source in enumerate(sources) for n in numbers(source.get(step, Shard(rank * rows, 16), rows))]
            for step in range(start, steps)
        ]

    whole = batches(1)
    assert batches(2) == whole
    assert batches(4) == whole
    assert batches(1, start=7) == whole[7:]
    assert batches(2, start=4, steps=6) == whole[4:6]


@EACH
def test_the_same_batches_from_workers_on_the_way(place, kind):
    """What was read here before they begin moves no place in a file for them, and no library deals samples out to them."""
    source, expected = SOURCES[kind](place), SOURCES[kind](place)
    source.get(0, Shard(0, 8), 8)

    def requests(step):
        return (Request(number, Shard(0, 8), 8) for number in itertools.count(step))

    ahead = Ahead(source, 2, requests)
    with ahead.at_work():
        for step in range(1, 13):
            assert numbers(ahead.get(step, Shard(0, 8), 8)) == numbers(expected.get(step, Shard(0, 8), 8)), step


@EACH
def test_going_back_and_other_orders(place, kind):
    source = SOURCES[kind](place)
    first = numbers(source.get(0, Shard(0, 8), 8))
    later = numbers(source.get(11, Shard(0, 8), 8))
    assert numbers(source.get(0, Shard(0, 8), 8)) == first
    assert numbers(source.get(11, Shard(0, 8), 8)) == later
    assert numbers(SOURCES[kind](place, seed=1).get(0, Shard(0, 8), 8)) != first
    assert source.fingerprint() == SOURCES[kind](place).fingerprint()
    assert source.fingerprint() != SOURCES[kind](place, image_size=12).fingerprint()


def test_passes_before_are_not_read_where_their_length_is_known(place):
    source = SOURCES["shards"](place, held_out=0.2)
    begun = []
    begin = source.begin
    source.begin = lambda number: begun.append(number) or begin(number)
    source.get(50, Shard(0, 16), 4)
    assert begun == [50 * 16 // source.length]
    assert source.available(10**6) == source.length


@EACH
def test_corrupt_ones_are_refused_or_the_next_takes_their_place(place, tmp_path, kind, monkeypatch):
    from xhat.sources import decoded

    real, bad = decoded.Image.open, png(PIXELS[5])

    def opened(file):
        return real(io.BytesIO(b"no") if isinstance(file, io.BytesIO) and file.getbuffer() == bad else file)

    monkeypatch.setattr(decoded.Image, "open", opened)
    # the library waits 3 seconds at the end of each pass that its threads read
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    if kind == "folder":
        copy = tmp_path / "folder"
        for path in (place / "folder").rglob("*.png"):
            (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
            (copy / path.parent.name / path.name).write_bytes(b"no" if path.stem == "0005" else path.read_bytes())
        made = lambda **k: images(str(copy), labels=True, **k)  # noqa: E731
    else:
        made = lambda **k: SOURCES[kind](place, **k)  # noqa: E731
    with pytest.raises(DataError, match=r"(no image, or damaged|is not an image).*--skip_corrupt true"):
        [made(held_out=0.0).get(step, Shard(0, 16), 16) for step in range(7)]
    parts = [made(held_out=0.0, skip_corrupt=True) for _ in range(3)]
    whole = [numbers(parts[0].get(step, Shard(0, 16), 16)) for step in range(12)]
    halves = [numbers(parts[1].get(s, Shard(0, 16), 8)) + numbers(parts[2].get(s, Shard(8, 16), 8)) for s in range(12)]
    assert whole == halves
    assert not any(5 in batch for batch in whole)
    assert len(parts[0].lost.names) >= 1


def test_what_is_left_out_is_named_and_counted_in_the_metrics(place, tmp_path, capsys):
    root = tmp_path / "folder"
    root.mkdir()
    for k in range(40):
        (root / f"{k:02}.png").write_bytes(b"no" if k in (7, 30) else png(PIXELS[k]))
    command = ("train", "mnist", "--data", f"images({root})", "--run", tmp_path / "run", "--held_out", 0, "--max_steps", 6)
    code, _, err = xhat(*command, "--skip_corrupt", "true", *TINY, capsys=capsys)
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["left_out"] == 2
    assert "left out, the next one is taken instead" in err
    assert "07.png" in err
    assert "30.png" in err


def test_paths_alone_stand_for_their_source(place):
    for path, kind in (
        (place / "all.parquet", "parquet"),
        (place / "t-000.tar", "webdataset"),
        (place / "disk", "huggingface"),
    ):
        assert in_words(str(path)).startswith(f"{kind}(")
        data = build_data(Config(data=str(path), held_out=0.1))
        assert data.shape.sample == (1, SIDE, SIDE)
    assert in_words("mnist") == "mnist"


def test_a_config_leaves_labels_out_now_and_then(place):
    data = build_data(Config(data=f"parquet({place / 'all.parquet'}, label=digit)", label_dropout=0.5, image_size="16x8"))
    assert isinstance(data.train, WithNull)
    assert data.shape.class_names == ("zero", "one", "two")
    batch = data.train.get(0, Shard(0, 64), 64)
    assert batch.x0.shape == (64, 1, 8, 16)
    assert 16 < int((batch.cond["label"] == 3).sum()) < 48


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p: parquet(str(p / "none.parquet")), "does not exist: give a .parquet file"),
        (
            lambda p: parquet(str(p / "all.parquet"), image="photo"),
            "no column photo: name that of the image, image=..., one of image",
        ),
        (lambda p: parquet(str(p / "all.parquet"), label="kind"), "no column kind"),
        (lambda p: parquet(str(p / "all.parquet"), image="text"), "is no image, or damaged"),
        (lambda p: huggingface(str(p / "folder"), split="nothing"), "cannot be loaded"),
        (lambda p: webdataset(str(p / "t-{000..009}.tar")), r"t-003\.tar\" does not exist"),
        (lambda p: webdataset(str(p / "t-000.tar"), image="gif"), "which members are the pictures"),
        (lambda p: webdataset(str(p / "t-000.tar"), label="txt"), "no member .txt is a whole number"),
        (lambda p: webdataset(str(p / "all.parquet")), "is no tar file, or damaged"),
        (lambda p: huggingface_stream(str(p / "bare-0.parquet"), label="digit"), "how many classes has digit"),
        (lambda p: images(str(p / "nothing")), "does not exist"),
    ],
)
def test_mistakes_are_one_line(place, make, line):
    with pytest.raises(DataError, match=line) as caught:
        make(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", range(0, 20))
def test_a_shard_that_is_cut_short_is_refused_wherever_it_is(place, tmp_path, cut):
    """A half of a download: within a member, within a header, between two, within what ends it."""
    whole = (place / "t-000.tar").read_bytes()
    with tarfile.open(place / "t-000.tar") as tar:
        ends = max(member.offset_data + 512 * -(-member.size // 512) for member in tar)
    (tmp_path / "t.tar").write_bytes(whole[: 600 + (ends - 600) * cut // 19])
    with pytest.raises(DataError, match=r"t\.tar is (cut short|no tar file, or damaged)"):
        webdataset(str(tmp_path / "t.tar"), label="cls")


def test_what_is_damaged_within_a_shard_or_follows_its_end_is_refused(place, tmp_path):
    whole = (place / "t-000.tar").read_bytes()
    with tarfile.open(place / "t-000.tar") as tar:
        header = tar.getmembers()[4].offset
    (tmp_path / "a.tar").write_bytes(whole[:header] + b"\xff" * 512 + whole[header + 512 :])
    (tmp_path / "b.tar").write_bytes(whole + whole)
    for name in ("a", "b"):
        with pytest.raises(DataError, match=rf"{name}\.tar is damaged at byte [\d,]+, or several tar files in one"):
            webdataset(str(tmp_path / f"{name}.tar"), label="cls")


@pytest.mark.parametrize("shards", ["pipe:touch pwned", "https://example.org/a.tar", "s3://bucket/a.tar"])
def test_no_config_runs_a_command(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="shards are read from disk"):
        webdataset(shards)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataNotFoundError):
        webdataset(str(tmp_path / "pipe:touch pwned"))
    assert not list(tmp_path.iterdir())


def test_one_image_too_deep_is_refused(tmp_path):
    for k in range(3):
        Image.fromarray(np.full((8, 8), 3000 * k, np.uint16)).save(tmp_path / f"{k}.png")
    with pytest.raises(DataError, match=r"more than 8 bits: save the images as arrays, and read them with fields"):
        images(str(tmp_path))


def test_torch_sees_whole_batches(place):
    batch = SOURCES["shards"](place).get(0, Shard(0, 4), 4)
    assert batch.x0.dtype == torch.uint8
    assert batch.cond["label"].dtype == torch.int64
