"""Captions of images: where they may stand, and one line for each way in which they do not fit."""

import json

import pytest

from helpers import write_pngs
from xhat.data.captions import read_captions, read_prompts
from xhat.errors import DataError


def metadata(root, rows):
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


@pytest.fixture
def folder(tmp_path):
    """Two images, a.png and sub/b.png."""
    write_pngs(tmp_path / "pics", 2)
    one, two = sorted((tmp_path / "pics").rglob("*.png"))
    (tmp_path / "pics" / "sub").mkdir()
    one.rename(tmp_path / "pics" / "a.png")
    two.rename(tmp_path / "pics" / "sub" / "b.png")
    return tmp_path / "pics"


def test_of_metadata(folder):
    metadata(folder, [{"file_name": "sub/b.png", "text": "a bee"}, {"file_name": "a.png", "caption": "an ape"}])
    found = read_captions(folder)
    assert [path.name for path in found.paths] == ["a.png", "b.png"]
    assert found.captions == ["an ape", "a bee"]


def test_of_texts_beside(folder):
    (folder / "a.txt").write_text(" an ape\n")
    (folder / "sub" / "b.txt").write_text("a bee")
    assert read_captions(folder).captions == ["an ape", "a bee"]


def test_of_folders(tmp_path):
    for name in ("red_dog", "cat"):
        write_pngs(tmp_path / name, 1)
    assert read_captions(tmp_path).captions == ["cat", "red dog"]


BROKEN = {
    "none": (lambda root: None, "images without captions: write metadata.jsonl"),
    "an image more": (
        lambda root: metadata(root, [{"file_name": "a.png", "text": "x"}]),
        "1 images without captions: sub/b.png",
    ),
    "a caption more": (
        lambda root: metadata(root, [{"file_name": n, "text": "x"} for n in ("a.png", "sub/b.png", "c.png")]),
        "1 captions without images: c.png",
    ),
    "a text more": (
        lambda root: [(root / n).write_text("x") for n in ("a.txt", "sub/b.txt", "z.txt")],
        "captions without images: z.txt",
    ),
    "a text less": (lambda root: (root / "a.txt").write_text("x"), "1 images without captions: sub/b.png"),
    "no file": (lambda root: metadata(root, [{"text": "x"}]), 'line 1: it has no "file_name"'),
    "no text": (lambda root: metadata(root, [{"file_name": "a.png"}]), "line 1: it has no text: name it one of text"),
    "no json": (lambda root: (root / "metadata.jsonl").write_text("a.png: x"), "line 1: it is no JSON object"),
    "no utf-8": (lambda root: (root / "metadata.jsonl").write_bytes(b"\xff\xfe\x00x"), "is no UTF-8 text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_named(name, folder):
    write, why = BROKEN[name]
    write(folder)
    with pytest.raises(DataError) as error:
        read_captions(folder)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("a red dog\n\n two cats \n")
    assert read_prompts(tmp_path / "p.txt") == ["a red dog", "two cats"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert read_prompts(tmp_path / "p.jsonl") == ["a", "b"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts(tmp_path / "empty.txt")
