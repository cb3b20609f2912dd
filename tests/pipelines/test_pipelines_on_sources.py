"""A pipeline on captioned pictures of a source, and on pictures that are not square."""

import io
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import xhat
from helpers import xhat as run_command
from pipelines import tiny
from xhat import rng
from xhat.data.images import to_float
from xhat.data.picture import read_head, read_pixels
from xhat.data.scale import EIGHT_BITS
from xhat.data.size import sizes_of
from xhat.networks.autoencoders import moments
from xhat.pipelines.latents import pipeline_data
from xhat.runs.load import load

SMALL = ("--batch_size", 4, "--log_every", 1, "--sampling.steps", 2, "--max_steps", 2, "--held_out", 0.4)


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pipeline `sd`, and 40 captioned pictures as a folder `pics`, as Parquet and as shards."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XHAT_CACHE", str(root / "cache"))
        tiny.stable_diffusion().save_pretrained(root / "sd")
        pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), dtype=np.uint8)
        files, words = [png(values) for values in pixels], [f"a {('red', 'blue')[k % 2]} cloth" for k in range(40)]
        (root / "pics").mkdir()
        for k, (data, text) in enumerate(zip(files, words, strict=True)):
            (root / "pics" / f"{k:02}.png").write_bytes(data)
            (root / "pics" / f"{k:02}.txt").write_text(text)
        datasets.Dataset.from_dict({"image": files, "text": words}).to_parquet(str(root / "p.parquet"))
        with tarfile.open(root / "p.tar", "w") as tar:
            for k, data in enumerate(files):
                member = tarfile.TarInfo(f"{k:02}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        yield root


def trained(place, name, data, *more):
    run = place / name
    assert run_command("train", "--init", place / "sd", "--lora", 2, "--data", data, "--run", run, *SMALL, *more)[0] == 0
    return load(run)


def test_captions_of_a_column_are_those_of_a_folder(place):
    of_folder = trained(place, "folder", place / "pics", "--image_size", 16)
    of_table = trained(place, "table", f"parquet({place / 'p.parquet'}, caption=text)", "--image_size", 16)
    for (name, own), other in zip(
        of_folder.denoiser.state_dict().items(), of_table.denoiser.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other), name


@pytest.mark.parametrize("data", ["pics", "parquet({place}/p.parquet, caption=text)"])
def test_pictures_that_are_not_square(place, data):
    name = f"wide-{data[:4]}"
    text = place / "pics" if data == "pics" else data.format(place=place)
    run = trained(place, name, text, "--image_size", "24x16")
    assert run.shape.sample == (4, 8, 12)
    out = place / f"{name}.npz"
    assert run_command("sample", place / name, "--prompt", "a red cloth", "--n", 2, "--steps", 2, "--out", out)[0] == 0
    assert np.load(out)["images"].shape == (2, 16, 24, 3)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("parquet({place}/p.parquet)", "what do the pictures show? name a column, caption=... or label=..."),
        ("webdataset({place}/p.tar)", "is read from front to back, and latents are made once"),
        (
            "huggingface_stream({place}/p.parquet, caption=text, measured=4)",
            "is read from front to back, and latents are made once",
        ),
    ],
)
def test_what_cannot_be_encoded_is_refused(place, tmp_path, capsys, data, line):
    command = (
        "train",
        "--init",
        place / "sd",
        "--lora",
        2,
        "--data",
        data.format(place=place),
        "--run",
        tmp_path / "r",
        *SMALL,
    )
    code, _, err = run_command(*command, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1), err
    assert line in err


def test_half_of_the_latents_are_of_mirror_images(place, monkeypatch):
    """Those that the autoencoder makes of them, which are no mirror images of its latents; the prompts stay where they are."""
    monkeypatch.setenv("XHAT_CACHE", str(place / "cache"))
    source, held, _ = data_of_pictures(place, mirrored=0.5)
    plain, _, _ = data_of_pictures(place, mirrored=0.0)
    vae, rows, total, seen = xhat.pretrained(place / "sd").pipeline.vae, 20, 0, set()
    for step in range(4):
        shard = xhat.Shard(0, rows)
        found, same = source.get(step, shard, rows), plain.get(step, shard, rows)
        assert found.extra["prompt"] == same.extra["prompt"]
        index = source.rows[source.order.indices(step * rows, rows)]
        swapped = [k for k in range(rows) if not torch.equal(found.x0[k], same.x0[k])]
        noise = rng.normal(tuple(found.x0.shape), 0, "latents", step)
        for k in swapped[:3]:
            with torch.no_grad():
                mean, std = moments(vae, pictures(place)[index[k]].flip(-1)[None])
            torch.testing.assert_close(found.x0[k], (mean + std * noise[k])[0], atol=1e-4, rtol=1e-4)
        total += len(swapped)
        seen.add(tuple(swapped))
        halves = [source.get(step, xhat.Shard(first, rows), rows // 2).x0 for first in (0, rows // 2)]
        assert torch.equal(torch.cat(halves), found.x0)
    assert 20 < total < 60
    assert len(seen) == 4
    assert torch.equal(held.get(0, xhat.Shard(0, 4), 4).x0, held.of.mean[held.rows[:4]])


def data_of_pictures(place, mirrored):
    how = {"sides": [(16, 16)], "held_out": 0.4, "dropout": 0.0, "seed": 0, "mirrored": mirrored}
    return pipeline_data(place / "sd", lambda: xhat.pretrained(place / "sd"), str(place / "pics"), **how)


def pictures(place):
    heads = [read_head(path) for path in sorted((place / "pics").glob("*.png"))]
    return to_float(torch.stack([torch.from_numpy(read_pixels(head, (16, 16), EIGHT_BITS)[0]) for head in heads]))


@pytest.mark.parametrize("ways", ["shift(2)", "flip, crop(0.8)", "flip, flip"])
def test_latents_know_no_other_augmentation(ways, place, capsys):
    words = ("train", "--init", place / "sd", "--lora", 2, "--data", place / "pics", "--run", place / "never", *SMALL)
    code, _, err = run_command(*words, "--augment", ways, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "--augment flip" in err
    assert not (place / "never").exists()


def test_a_run_on_mirrored_latents_trains(place):
    one = trained(place, "mirrored", place / "pics", "--image_size", 16, "--augment", "flip")
    other = trained(place, "not mirrored", place / "pics", "--image_size", 16)
    assert one.config.augment == "flip"
    pairs = zip(one.denoiser.state_dict().values(), other.denoiser.state_dict().values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


SEVERAL = "16, 24x12, 12x24"


@pytest.fixture(scope="module")
def shapes(place):
    """40 pictures: squares, wide and high ones, each with its number as its caption."""
    folder = place / "shapes"
    folder.mkdir()
    sizes = [((20, 20), (40, 18), (18, 44), (24, 20))[k % 4] for k in range(40)]
    for k, (width, height) in enumerate(sizes):
        values = np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)
        (folder / f"{k:02}.png").write_bytes(png(values))
        (folder / f"{k:02}.txt").write_text(f"{k}")
    return folder, sizes


def test_each_picture_is_of_the_nearest_shape(place, shapes, monkeypatch):
    """Every step is of one size, as often as it has pictures; all are visited equally often, on any number of processes."""
    monkeypatch.setenv("XHAT_CACHE", str(place / "cache"))
    folder, sizes = shapes
    how = {"sides": sizes_of(SEVERAL), "held_out": 0.0, "dropout": 0.0, "seed": 0}
    source, held, shape = pipeline_data(place / "sd", lambda: xhat.pretrained(place / "sd"), str(folder), **how)
    assert held is None
    assert shape.sample == source.samples[0] == (4, 8, 8)
    assert set(source.samples) == {(4, 8, 8), (4, 6, 12), (4, 12, 6)}
    seen, steps = Counter(), Counter()
    for step in range(600):
        batch = source.get(step, xhat.Shard(0, 4), 4)
        steps[tuple(batch.x0.shape[1:])] += 1
        for text in batch.extra["prompt"]:
            width, height = sizes[int(text)]
            assert batch.x0.shape[1:] == {(40, 18): (4, 6, 12), (18, 44): (4, 12, 6)}.get((width, height), (4, 8, 8))
            seen[int(text)] += 1
    assert steps[(4, 8, 8)] == pytest.approx(300, abs=40)
    assert len(seen) == 40
    assert 45 < min(seen.values()) <= max(seen.values()) < 75  # 60 on average
    late = pipeline_data(place / "sd", lambda: xhat.pretrained(place / "sd"), str(folder), **how)[0]  # as after a resume
    for step in (1500, 599, 3):
        one, other = (each.get(step, xhat.Shard(0, 4), 4) for each in (source, late))
        halves = [source.get(step, xhat.Shard(first, 4), 2).x0 for first in (0, 2)]
        assert torch.equal(one.x0, other.x0)
        assert torch.equal(torch.cat(halves), one.x0)
    assert late.fingerprint() == source.fingerprint()


def test_a_run_on_several_sizes_trains_and_draws(place, shapes, tmp_path, capsys):
    run = trained(
        place, "several", shapes[0], "--image_size", SEVERAL, "--augment", "flip", "--max_steps", 6, "--checkpoint_every", 3
    )
    assert run.shape.sample == (4, 8, 8)
    for words in (("sample", "--prompt", "7", "--out", tmp_path / "s.npz"), ("evaluate", "--n", 4, "--images", 4)):
        code, _, err = run_command(words[0], place / "several", *words[1:], capsys=capsys)
        assert code == 0, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image_size", "16, 16x16"), "twice"),
        (("--image_size", "16, 8x"), "image_size must be"),
        (("--data", "parquet", "--image_size", "16, 24x12"), "name one"),
    ],
)
def test_sizes_that_cannot_be(words, said, place, shapes, capsys):
    given = [f"parquet({place / 'p.parquet'}, caption=text)" if word == "parquet" else word for word in words]
    data = () if "--data" in given else ("--data", shapes[0])
    code, _, err = run_command(
        "train", "--init", place / "sd", "--lora", 2, "--run", place / "never", *SMALL, *data, *given, capsys=capsys
    )
    assert (code, err.count("\n")) == (2, 1), err
    assert said in err
    assert not (place / "never").exists()
