"""Data sets of Hugging Face and Parquet files that are read from front to back: larger than anybody wants to convert first."""

import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from xhat import rng
from xhat.data.batch import Batch
from xhat.data.shape import PIXELS, DataShape
from xhat.data.size import size_of
from xhat.errors import DataError
from xhat.files.stamp import stamp
from xhat.registry import DATA
from xhat.sources.decoded import picture_of, pixels_of, shape_of_pictures, those_that_can_be_read
from xhat.sources.pictures import LOOKED_AT
from xhat.sources.streamed import Samples
from xhat.sources.tables import IMAGE_COLUMNS, column_of, files_of, loaded, of_name, text_of


@DATA.register
def huggingface_stream(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    classes: int | None = None,
    shuffle: int = 1000,
    measured: int = 500,
    image_size: int | str | None = None,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> Samples:
    """The rows of a data set, or of Parquet files, in the order of their files, which is another one each pass.

    The first rows are held out.

    Args:
        name: of the data set or its folder; or Parquet files, data/*.parquet.
        split: of the data set.
        config: of it, which load_dataset calls its name.
        image: column of the pictures; by default image, img, picture, jpg or png.
        label: column of the class, a whole number, which the network is told.
        caption: column of the text.
        classes: how many there are, where the data set does not say.
        shuffle: rows that are shuffled among each other; 0 is none.
        measured: rows that are held out.
        image_size: as of a config.
        seed: of the order.
        skip_corrupt: take the next row for one that cannot be read.

    Raises:
        DataError: it cannot be read, or has no such columns.
    """
    table, mark = _opened(name, split, config)
    known = list(table.column_names or next(iter(table), ()))
    column = column_of(known, image, IMAGE_COLUMNS, name, "image")
    classified = None if label is None else column_of(known, label, (), name, "label")
    words = None if caption is None else column_of(known, caption, (), name, "caption")
    table, names = _undecoded(table, column), _names(table, classified)
    number = (len(names) or classes) if classified else None
    if classified and not number:
        raise DataError(f"{name}: how many classes has {classified}? Say it, classes=10")
    raws = list(islice(iter(table), LOOKED_AT))
    seen = those_that_can_be_read(raws, lambda raw: picture_of(raw[column], f"{name}: a row"), skip=skip_corrupt)
    channels, size = shape_of_pictures(seen, size_of(image_size))

    def decode(raw: Any) -> Batch:
        pixels = pixels_of(picture_of(raw[column], f"{name}: a row"), size, channels)
        cond = None if classified is None else {"label": torch.tensor(int(raw[classified]))}
        return Batch(pixels, cond, None if words is None else {"prompt": text_of(raw[words])})

    def begin(number: int) -> Iterator[Any]:
        rows = table.skip(measured) if measured else table
        order = rng.generator(seed, "rows", number).initial_seed() % 2**31
        return iter(rows.shuffle(seed=order, buffer_size=shuffle) if shuffle else rows)

    shape = DataShape.of((channels, *size), number, names=names, range=PIXELS)
    whole = f"{zlib.crc32(mark.encode()):08x} {column} {label} {caption} {size} {channels} {shuffle} {seed} {measured}"
    held = None
    if measured > 1:
        own = Samples(lambda _: iter(table.take(measured)), decode, f"{whole} held out", name, shape, skip=skip_corrupt)
        held = own if own.available(2) == 2 else None
    return Samples(begin, decode, whole, name, shape, skip=skip_corrupt, held_out=held)


def _opened(name: str, split: str, config: str | None) -> tuple[Any, str]:
    """The data set, and what tells it from others."""
    if ".parquet" in name:
        paths = files_of(name, ".parquet")
        files = [str(path) for path in paths]
        table = loaded(name, lambda lib: lib.load_dataset("parquet", data_files=files, split="train", streaming=True))
        return table, "\n".join(map(stamp, paths))
    path = Path(name).expanduser()
    table = loaded(name, lambda lib: of_name(lib, name, split, config, streaming=True))
    table = table.to_iterable_dataset() if hasattr(table, "to_iterable_dataset") else table
    return table, f"{path.resolve() if path.exists() else name} {split} {config}"


def _undecoded(table: Any, column: str) -> Any:
    feature = (table.features or {}).get(column)
    if feature is None or not hasattr(feature, "decode"):
        return table
    import datasets

    return table.cast_column(column, datasets.Image(decode=False))


def _names(table: Any, column: str | None) -> tuple[str, ...]:
    feature = (table.features or {}).get(column) if column else None
    return tuple(getattr(feature, "names", ()))
