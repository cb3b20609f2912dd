"""WebDataset shards: tar files whose members of one name are a sample."""

import random
import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from xhat import rng
from xhat.data.batch import Batch
from xhat.data.shape import PIXELS, DataShape
from xhat.data.size import Size, size_of
from xhat.errors import DataError, DataNotFoundError, RunError
from xhat.files.stamp import stamp
from xhat.registry import DATA
from xhat.sources.decoded import picture_of, pixels_of, shape_of_pictures, those_that_can_be_read
from xhat.sources.pictures import LOOKED_AT
from xhat.sources.streamed import Samples

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "ppm")
MOST_ZEROS = 2**20
"""Bytes that are looked at after a shard's end: what is there is no sample any more."""
ELSEWHERE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
"""A scheme, such as pipe: or https:, for which the library would run a command."""


@DATA.register
def webdataset(
    shards: str,
    *,
    image: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    shuffle: int = 1000,
    classes: int | None = None,
    image_size: int | str | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> Samples:
    """Shards of WebDataset, read one after the other: in another order each pass, and shuffled within a buffer.

    Held out are samples whose name has a low checksum, which are the same in every order.

    Args:
        shards: as WebDataset names them, train-{000..099}.tar; a tar file, or a folder of them.
        image: suffix of the pictures; by default jpg, jpeg, png, webp or ppm.
        label: suffix of the class, a whole number in text, which the network is told.
        caption: suffix of the text.
        shuffle: samples that are shuffled among each other, not decoded; 0 is none.
        classes: how many there are; by default one more than the largest label in the first pass.
        image_size: as of a config.
        held_out: share to measure on.
        seed: of the order.
        skip_corrupt: take the next sample for one that cannot be read.

    Raises:
        DataError: no shards, or no such members.
    """
    paths = _shards(shards)
    counted = _Counted.of(paths, label, held_out)
    limit = int(held_out * 2**32)

    def begin(number: int, *, out: bool = False, order: bool = True) -> Iterator[Any]:
        random_ = random.Random(rng.generator(seed, "shards", number).initial_seed())
        mine = random_.sample(paths, len(paths)) if order else paths
        samples = (raw for raw in _members(mine) if (_checksum(raw) < limit) == out)
        return _shuffled(samples, shuffle if order else 0, random_)

    first = list(islice(begin(0, order=False), LOOKED_AT))
    if not first:
        raise DataError(f"{shards} holds no samples")
    suffix = image or next((name for name in IMAGE_SUFFIXES if name in first[0]), None)
    if suffix is None or suffix not in first[0]:
        known = ", ".join(key for key in first[0] if not key.startswith("__"))
        raise DataError(f"{shards}: which members are the pictures? image=..., one of {known}")
    own = [raw for raw in first if suffix in raw]
    seen = those_that_can_be_read(own, lambda raw: picture_of(raw[suffix], f"{shards}: {raw['__key__']}"), skip=skip_corrupt)
    channels, size = shape_of_pictures(seen, size_of(image_size))
    decode = _Decode(shards, suffix, label, caption, channels, size)
    number = None if label is None else classes or counted.classes
    if label is not None and number is None:
        raise DataError(f"{shards}: no member .{label} is a whole number")
    shape = DataShape.of((channels, *size), number, range=PIXELS)
    mark = zlib.crc32("\n".join(stamp(Path(path)) for path in paths).encode())
    whole = f"{mark:08x} {len(paths)} {suffix} {label} {caption} {size} {channels} {shuffle} {seed} {held_out:g}"
    held = None
    if limit:
        aside = Samples(
            lambda _: begin(0, out=True, order=False), decode, f"{whole} held out", shards, shape, skip=skip_corrupt
        )
        held = aside if aside.available(2) == 2 else None
    return Samples(begin, decode, whole, shards, shape, length=counted.length, skip=skip_corrupt, held_out=held)


class _Decode:
    """A sample of a shard -> its picture, class and caption."""

    def __init__(self, name: str, image: str, label: str | None, caption: str | None, channels: int, size: Size) -> None:
        self.name, self.image, self.label, self.caption = name, image, label, caption
        self.channels, self.size = channels, size

    def __call__(self, raw: Any) -> Batch:
        where = f"{self.name}: {raw['__key__']}"
        pixels = pixels_of(picture_of(self._member(raw, self.image, where), f"{where}.{self.image}"), self.size, self.channels)
        cond = extra = None
        if self.label is not None:
            text = self._member(raw, self.label, where)
            try:
                cond = {"label": torch.tensor(int(text))}
            except ValueError:
                raise DataError(f"{where}.{self.label} is no whole number") from None
        if self.caption is not None:
            extra = {"prompt": self._member(raw, self.caption, where).decode(errors="replace")}
        return Batch(pixels, cond, extra)

    def _member(self, raw: Any, suffix: str, where: str) -> bytes:
        if suffix not in raw:
            raise DataError(f"{where} has no .{suffix}")
        found: bytes = raw[suffix]
        return found


class _Counted:
    """What the headers of local shards say: how many samples to train on there are in a pass, and the largest label."""

    def __init__(self, length: int, classes: int | None) -> None:
        self.length, self.classes = length, classes

    @classmethod
    def of(cls, paths: list[str], label: str | None, held_out: float) -> "_Counted":
        limit, keys, largest = int(held_out * 2**32), 0, -1
        for path in paths:
            before = ""
            try:
                with tarfile.open(path, "r:*") as tar:
                    for member in tar:
                        if not member.isfile():
                            continue
                        key, _, suffix = _split(member.name)
                        if key != before and zlib.crc32(key.encode()) >= limit:
                            keys += 1
                        before = key
                        if label is not None and suffix == label and (file := tar.extractfile(member)) is not None:
                            text = file.read(20)
                            largest = max(largest, int(text) if text.strip().isdigit() else -1)
                    _require_end(tar, path)
            except (tarfile.TarError, EOFError, zlib.error) as error:
                raise DataError(f"{path} is no tar file, or damaged: {error}") from None
        return cls(keys, largest + 1 if largest >= 0 else None)


def _require_end(tar: tarfile.TarFile, path: str) -> None:
    """Refuse a shard whose members end without the zeros that end a tar file: readers stop there without a word.

    Raises:
        DataError: it was cut, or damaged, or something comes after its end.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(MOST_ZEROS)
    if len(rest) < tarfile.BLOCKSIZE:
        raise DataError(f"{path} is cut short after {tar.offset:,} bytes: copy it again")
    if rest.strip(b"\0"):
        raise DataError(f"{path} is damaged at byte {tar.offset:,}, or several tar files in one: copy or pack it again")


def _split(name: str) -> tuple[str, str, str]:
    """Name and suffix of a member, as WebDataset parts them: at the first dot of the last name."""
    folder, slash, last = name.rpartition("/")
    key, dot, suffix = last.partition(".")
    return f"{folder}{slash}{key}", dot, suffix.lower()


def _shards(shards: str) -> list[str]:
    """The names of all.

    Raises:
        DataError: they are not on this machine: for others the library runs commands, which nobody may put into a config.
    """
    library = _library()
    if ELSEWHERE.match(shards):
        raise DataError(
            f"{shards}: shards are read from disk: copy or mount them, or train in Python on data.from_iterable of a WebDataset"
        )
    path = Path(shards).expanduser()
    found = sorted(map(str, path.glob("*.tar"))) if path.is_dir() else list(library.shardlists.expand_urls(str(path)))
    missing = next((name for name in found if not Path(name).is_file()), None)
    if missing is not None or not found:
        what = "shards, train-{000..099}.tar, or a folder of them"
        raise DataNotFoundError(f'data "{missing or shards}" does not exist: give {what}')
    return found


def _library() -> Any:
    try:
        import webdataset
        import webdataset.shardlists
    except ImportError:
        raise RunError("shards need the library webdataset: pip install 'xhat[data]'") from None
    return webdataset


def _members(paths: list[str]) -> Iterator[Any]:
    """The samples of shards as the library reads them, dicts of bytes by suffix, with __key__; all of them on each process."""
    library = _library()
    every = dict.fromkeys(("nodesplitter", "workersplitter"), lambda source: source)
    return iter(library.WebDataset(paths, shardshuffle=False, empty_check=False, handler=library.reraise_exception, **every))


def _shuffled(samples: Iterator[Any], buffer: int, random_: random.Random) -> Iterator[Any]:
    if not buffer:
        return samples
    library = _library()
    found: Iterator[Any] = iter(library.filters.shuffle(buffer, rng=random_)(samples))
    return found


def _checksum(raw: Any) -> int:
    return zlib.crc32(str(raw["__key__"]).encode())
