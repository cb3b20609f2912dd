"""What images show, in words: captions beside them, or the names of their classes."""

import json
from dataclasses import dataclass
from pathlib import Path

from xhat.data.files import list_images
from xhat.data.wording import some
from xhat.errors import DataError, DataNotFoundError

METADATA = "metadata.jsonl"
TEXT_KEYS = ("text", "caption", "prompt")


@dataclass(frozen=True)
class Captioned:
    """Images on disk with their captions.

    Attributes:
        paths: of the images, sorted.
        captions: of each.
    """

    paths: list[Path]
    captions: list[str]


def read_captions(root: Path) -> Captioned:
    """The images below a folder and their captions: of metadata.jsonl, of a .txt beside each, or the names of its sub-folders.

    Args:
        root: the folder. metadata.jsonl has a line {"file_name": ..., "text": ...} for each image, as data sets of
            "imagefolder" have it; a.txt is the caption of a.png.

    Raises:
        DataNotFoundError: no such folder.
        DataError: an image without a caption, a caption without an image, or no captions at all, by name.
    """
    if not root.is_dir():
        raise DataNotFoundError(f'data "{root}" does not exist: give a folder of images with captions, or a .txt of prompts')
    paths = list_images(root).paths
    if (root / METADATA).is_file():
        return _of_metadata(root, paths)
    beside = {path: path.with_suffix(".txt") for path in paths}
    if any(text.is_file() for text in beside.values()):
        return _beside(root, beside)
    folders = [path.relative_to(root).parts for path in paths]
    if all(len(parts) > 1 for parts in folders):
        return Captioned(paths, [parts[0].replace("_", " ") for parts in folders])
    raise DataError(
        f'{root} has images without captions: write {METADATA} with a line {{"file_name": "a.png", "text": "..."}} for each, a '
        ".txt beside each, or sort them into folders named after what they show"
    )


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: a line each of a .txt, or the texts of a .jsonl.

    Raises:
        DataError: there are none, or a line is no text.
    """
    rows = _lines(path)
    prompts = [_text_of(path, number, row) for number, row in rows] if path.suffix == ".jsonl" else [row for _, row in rows]
    if not prompts:
        raise DataError(f"{path} holds no prompts: write one a line")
    return prompts


def _of_metadata(root: Path, paths: list[Path]) -> Captioned:
    file = root / METADATA
    found: dict[Path, str] = {}
    for number, row in _lines(file):
        values = _object(file, number, row)
        name = values.get("file_name")
        if not isinstance(name, str):
            raise DataError(f'{file}, line {number}: it has no "file_name": name the image that it is of')
        found[root / name] = _text_of(file, number, row)
    known = set(paths)
    lost = [str(path.relative_to(root)) for path in found if path not in known]
    if lost:
        raise DataError(f"{file}: {len(lost)} captions without images: {some(lost)}: remove the lines, or add the images")
    return _whole(root, paths, found)


def _beside(root: Path, beside: dict[Path, Path]) -> Captioned:
    found = {path: "\n".join(row for _, row in _lines(text)) for path, text in beside.items() if text.is_file()}
    texts, known = set(root.rglob("*.txt")), set(beside.values())
    if lost := sorted(str(path.relative_to(root)) for path in texts - known):
        raise DataError(f"{root}: {len(lost)} captions without images: {some(lost)}: remove them, or add the images")
    return _whole(root, list(beside), found)


def _whole(root: Path, paths: list[Path], found: dict[Path, str]) -> Captioned:
    bare = [str(path.relative_to(root)) for path in paths if path not in found]
    if bare:
        raise DataError(f"{root}: {len(bare)} images without captions: {some(bare)}: caption them, or take them away")
    return Captioned(paths, [found[path] for path in paths])


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbers, from 1, and text of the lines that are not empty.

    Raises:
        DataError: it is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no UTF-8 text: save it as UTF-8") from None
    return [(number, row.strip()) for number, row in enumerate(text.splitlines(), 1) if row.strip()]


def _object(path: Path, number: int, row: str) -> dict[str, object]:
    try:
        values = json.loads(row)
    except (RecursionError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{path}, line {number}: it is no JSON object, such as {{'text': 'a red dog'}} in double quotes")
    return values


def _text_of(path: Path, number: int, row: str) -> str:
    values = _object(path, number, row)
    found = next((values[key] for key in TEXT_KEYS if key in values), None)
    if not isinstance(found, str):
        raise DataError(f"{path}, line {number}: it has no text: name it one of {', '.join(TEXT_KEYS)}")
    return found
