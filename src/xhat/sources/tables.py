"""Parquet files and data sets of Hugging Face, whose rows have numbers: a picture, a class and a caption by column."""

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xhat.data.labels import UnclearLabelsError, class_values, numbered
from xhat.data.size import size_of
from xhat.errors import DataError, DataNotFoundError, RunError, first_line
from xhat.files.stamp import stamp
from xhat.registry import DATA
from xhat.sources.decoded import picture_of
from xhat.sources.pictures import Pictures, pictures_as_rows

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")


@DATA.register
def parquet(
    files: str,
    *,
    image: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    image_size: int | str | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> Pictures:
    """Rows of Parquet files, in which pictures are files in bytes or what `datasets` writes as an image.

    Args:
        files: one, a pattern such as data/*.parquet, or a folder of them.
        image: name of the column; by default image, img, picture, jpg or png.
        label: column of the class, which the network is told.
        caption: column of the text.
        image_size: as of a config.
        held_out: share to measure on.
        seed: of the order.
        skip_corrupt: take the next row for one that cannot be read.

    Raises:
        DataError: there are no such files or columns.
    """
    paths = files_of(files, ".parquet")
    table = loaded(files, lambda lib: lib.load_dataset("parquet", data_files=[str(p) for p in paths], split="train"))
    return _rows(table, files, "\n".join(map(stamp, paths)), image, label, caption, image_size, held_out, seed, skip_corrupt)


@DATA.register
def huggingface(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    image_size: int | str | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> Pictures:
    """A data set of Hugging Face: a folder that save_to_disk wrote, any folder or name that its load_dataset takes.

    Args:
        name: of the folder or the data set.
        split: of it.
        config: of it, which load_dataset calls its name.
        image: as of `parquet`, like the rest.
        label: see there.
        caption: see there.
        image_size: see there.
        held_out: see there.
        seed: see there.
        skip_corrupt: see there.

    Raises:
        DataError: it cannot be loaded, or has no such columns.
    """
    table = loaded(name, lambda lib: of_name(lib, name, split, config))
    mark = str(getattr(table, "_fingerprint", ""))
    return _rows(table, name, mark, image, label, caption, image_size, held_out, seed, skip_corrupt)


def of_name(lib: Any, name: str, split: str, config: str | None, **more: Any) -> Any:
    """The data set of a name, or of a folder."""
    path = Path(name).expanduser()
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        found = lib.load_from_disk(str(path))
        return found[split] if hasattr(found, "keys") else found
    return lib.load_dataset(str(path) if path.exists() else name, config, split=split, **more)


def loaded(name: str, load: Callable[[Any], Any]) -> Any:
    """What the library datasets makes of it.

    Raises:
        RunError: it is not installed.
        DataError: it cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise RunError("Parquet and data sets of Hugging Face need the library datasets: pip install 'xhat[data]'") from None
    datasets.disable_progress_bars()
    try:
        return load(datasets)
    except Exception as error:  # of a damaged file, of a builder, of a network that is not there
        raise DataError(f"{name} cannot be loaded: {first_line(error)}") from error


def files_of(files: str, suffix: str) -> list[Path]:
    """The files of a path, a pattern or a folder, sorted.

    Raises:
        DataNotFoundError: there are none.
    """
    path = Path(files).expanduser()
    found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path] if path.is_file() else []
    found = found or sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not found:
        raise DataNotFoundError(
            f'data "{files}" does not exist: give a {suffix} file, a pattern such as data/*{suffix}, or a folder'
        )
    return found


def column_of(known: list[str], named: str | None, names: tuple[str, ...], name: str, what: str) -> str:
    """The column that is meant.

    Raises:
        DataError: there is none.
    """
    column = named or next((n for n in names if n in known), None)
    if column is None or column not in known:
        which = f"no column {named}" if named else f"no column is called {' or '.join(names)}"
        raise DataError(f"{name}: {which}: name that of the {what}, {what}=..., one of {', '.join(known)}")
    return column


def _rows(
    table: Any,
    name: str,
    mark: str,
    image: str | None,
    label: str | None,
    caption: str | None,
    image_size: int | str | None,
    held_out: float,
    seed: int,
    skip: bool,
) -> Pictures:
    known = list(table.column_names)
    column = column_of(known, image, IMAGE_COLUMNS, name, "image")
    pictures = _undecoded(table, column)

    def picture(number: int) -> Image.Image:
        return picture_of(pictures[number][column], f"{name}: row {number}")

    labels, classes, names = (
        (None, None, ()) if label is None else _labels(table, column_of(known, label, (), name, "label"), name)
    )
    words = None if caption is None else column_of(known, caption, (), name, "caption")
    return pictures_as_rows(
        picture,
        len(table),
        f"{mark} {column} {label} {caption}",
        name,
        size=size_of(image_size),
        labels=labels,
        names=names,
        classes=classes,
        captions=None if words is None else lambda: [text_of(text) for text in table[words][:]],
        held_out=held_out,
        seed=seed,
        skip=skip,
    )


def _undecoded(table: Any, column: str) -> Any:
    """The column of pictures alone, as bytes: a damaged one is found where it is asked for."""
    alone = table.select_columns([column])
    feature = table.features[column]
    if hasattr(feature, "decode"):
        import datasets

        return alone.cast_column(column, datasets.Image(decode=False))
    return alone


def _labels(table: Any, column: str, name: str) -> tuple[Tensor, int, tuple[str, ...]]:
    values = np.asarray(table[column][:])
    feature = table.features[column]
    if hasattr(feature, "names"):  # of all classes, those without a row too
        return torch.as_tensor(values.astype(np.int64)), len(feature.names), tuple(feature.names)
    try:
        return numbered(class_values(values, len(table), f"{name} ({column})"))
    except UnclearLabelsError as error:
        raise DataError(f"{name} ({column}): {error}") from None


def text_of(value: Any) -> str:
    """A caption; of several the first."""
    return str(value[0] if isinstance(value, list) and value else value or "")
