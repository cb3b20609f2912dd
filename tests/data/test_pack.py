"""A folder that was decoded once: the same images from the cache, and never those of another folder."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import write_pngs
from xhat.data import folder
from xhat.data.folder import load_folder
from xhat.errors import DataError
from xhat.files.cache import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XHAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def packs(monkeypatch):
    monkeypatch.setattr(folder, "PACKED_FROM", 1)
    monkeypatch.setattr(folder, "AT_A_TIME", 5)


def same(a, b):
    assert torch.equal(a.pixels[:], b.pixels[:])
    assert a.fingerprint() == b.fingerprint()
    assert (a.labels is None and b.labels is None) or torch.equal(a.labels, b.labels)
    assert (a.names, a.found) == (b.names, b.found)


def never(*args, **kwargs):
    raise AssertionError("it was decoded again")


@pytest.mark.parametrize(("mode", "classes"), [("RGB", 3), ("L", 0), ("RGBA", 0)])
def test_packed_images_are_those_of_memory(tmp_path, monkeypatch, mode, classes):
    root = write_pngs(tmp_path / "d", 12, (9, 7), mode=mode, classes=classes)
    in_memory = load_folder(root, 8)
    assert not cache_folder().exists()
    monkeypatch.setattr(folder, "PACKED_FROM", 1)
    lines = []
    same(load_folder(root, 8, say=lines.append), in_memory)
    assert lines == [f"{root}: decoding 12 images to 8x8, once"]
    monkeypatch.setattr(folder, "read_pixels", never)
    monkeypatch.setattr(folder, "read_head", never)
    same(load_folder(root, 8), in_memory)


def test_grey_images_saved_in_colour_stay_grey(tmp_path, packs):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(7):
        Image.new("RGB", (8, 8), (20 * k + 90,) * 3).save(root / f"{k}.png")
    assert load_folder(root).pixels.shape == (7, 1, 8, 8)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(root / "red.png")
    found = load_folder(root)
    assert found.pixels.shape == (8, 3, 8, 8)
    assert found.pixels[7, :, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("change", ["touch", "replace", "add", "remove", "rename"])
def test_a_folder_that_changes_is_decoded_anew(tmp_path, packs, change):
    root = write_pngs(tmp_path / "d", 6, (8, 8))
    before, first = load_folder(root), sorted(root.iterdir())[0]
    if change == "touch":
        os.utime(first, ns=(1, 1))
    elif change == "replace":
        Image.new("RGB", (8, 8), (1, 200, 3)).save(first)
    elif change == "add":
        Image.new("RGB", (8, 8), (1, 200, 3)).save(root / "zzz.png")
    elif change == "remove":
        first.unlink()
    else:
        first.rename(root / "zzz.png")
    lines = []
    after = load_folder(root, say=lines.append)
    assert len(lines) == 1
    assert (before.fingerprint() == after.fingerprint()) == (change == "touch")
    assert len(after) == {"add": 7, "remove": 5}.get(change, 6)


@pytest.mark.parametrize("damage", ["flip", "cut", "json", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path, packs, cache, damage):
    root = write_pngs(tmp_path / "d", 6, (8, 8))
    before = load_folder(root)
    expected = before.pixels[:]
    [pack], [about] = cache.glob("*.pack"), cache.glob("*.json")
    data = bytearray(pack.read_bytes())
    if damage == "flip":
        data[100] ^= 1
        pack.write_bytes(data)
    elif damage == "cut":
        pack.write_bytes(data[:-1])
    elif damage == "json":
        about.write_text(about.read_text().replace("6", "7", 1))
    else:
        pack.unlink()
    lines = []
    found = load_folder(root, say=lines.append)
    assert len(lines) == 1
    assert torch.equal(found.pixels[:], expected)
    assert {p.suffix for p in cache.iterdir()} == {".pack", ".json"}


def test_another_folder_of_the_same_names_sizes_and_times_is_another(tmp_path, packs):
    found = []
    for name, grey in (("a", 20), ("b", 220)):
        (tmp_path / name).mkdir()
        for k in range(6):
            path = tmp_path / name / f"{k}.bmp"
            Image.new("L", (8, 8), grey + k).save(path)
            os.utime(path, (0, 0))
        found.append(load_folder(tmp_path / name).pixels[:, 0, 0, 0].tolist())
    assert found == [list(range(20, 26)), list(range(220, 226))]


def test_what_was_packed_before_goes_when_nobody_has_used_it_for_a_week(tmp_path, packs, cache):
    root = write_pngs(tmp_path / "d", 6, (8, 8))
    before = load_folder(root)
    Image.new("RGB", (8, 8), (1, 200, 3)).save(root / "zzz.png")
    load_folder(root)
    assert len(list(cache.glob("*.pack"))) == 2
    assert before.pixels[0].shape == (3, 8, 8)  # who trains on it still may
    for path in cache.iterdir():
        os.utime(path, (0, 0))
    Image.new("RGB", (8, 8), (1, 100, 3)).save(root / "zzz.png")
    load_folder(root)
    assert len(list(cache.glob("*.pack"))) == 1


def test_a_cache_that_cannot_be_written_is_noted(tmp_path, packs, cache):
    root = write_pngs(tmp_path / "d", 6, (8, 8))
    cache.write_text("no folder")
    found = load_folder(root)
    assert isinstance(found.pixels, torch.Tensor)
    assert any("kept in memory, the cache cannot be written" in note and "XHAT_CACHE" in note for note in found.found.notes)


@pytest.mark.parametrize("packed_from", [1, 1000])
def test_corrupt_files_are_refused_or_left_out_and_named(tmp_path, monkeypatch, packed_from):
    monkeypatch.setattr(folder, "PACKED_FROM", packed_from)
    root = write_pngs(tmp_path / "d", 8, (8, 8), classes=2)
    bad = sorted(root.rglob("*.png"))[2]
    bad.write_bytes(bad.read_bytes()[:60])
    (root / "no.png").write_text("text")
    (root / "no.png").rename(bad.parent / "no.png")
    with pytest.raises(DataError, match=r"2 of 9 image files cannot be used: .*--skip_corrupt true"):
        load_folder(root)
    found = load_folder(root, skip=True)
    assert len(found) == len(found.labels) == 7
    [note] = [note for note in found.found.notes if "left out" in note]
    assert "2 files that cannot be read" in note
    assert bad.name in note
    assert "no.png" in note
    whole = load_folder(root, skip=True).labels.bincount().tolist()
    assert sorted(whole) == [3, 4]


def test_a_folder_of_nothing_but_damaged_files_is_refused(tmp_path, packs):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(3):
        (root / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(DataError, match="none of its 3 image files can be read"):
        load_folder(root, skip=True)


def test_deep_files_share_one_scale(tmp_path, packs):
    root = tmp_path / "d"
    root.mkdir()
    for k in range(4):
        Image.fromarray(np.full((8, 8), 1000 * (k + 1), np.uint16)).save(root / f"{k}.png")
    found = load_folder(root)
    assert found.found.scale == (0, 4095)
    assert found.pixels[:, 0, 0, 0].tolist() == [62, 125, 187, 249]
