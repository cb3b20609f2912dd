"""The data of a config: images that it names by a path, or a source of a user's own."""

import ast
import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xhat.config.names  # noqa: F401  # the sources are registered
from xhat.config.config import Config
from xhat.config.make import make
from xhat.config.origins import origin
from xhat.config.paths import arguments, with_quotes
from xhat.config.syntax import parse_expression
from xhat.data.augment import Augmentation, Augmented, flip
from xhat.data.images import Images
from xhat.data.load import load_shape
from xhat.data.null import WithNull
from xhat.data.order import AsTheyAre, Order
from xhat.data.parts import Parts, labels_for, load_parts
from xhat.data.rows import images_as_rows
from xhat.data.shape import DataShape, data_shape
from xhat.data.size import said, sizes_of
from xhat.data.source import DataSource, asked, available, shape_of
from xhat.errors import ConfigError, DataError, DataNotFoundError
from xhat.pipelines.latents import pipeline_data
from xhat.pipelines.network import folder_of, pixels_of
from xhat.pipelines.pretrained import pretrained
from xhat.registry import AUGMENTATIONS, DATA, MAPS, UNITS
from xhat.rng import Shard
from xhat.sources.pictures import Pictures
from xhat.sources.streamed import Samples

NAMES: Mapping[str, Any] = ChainMap(DATA, UNITS, MAPS)  # type: ignore[arg-type]
"""What the expression of a data source is made of."""
MOST_MEASURED = 10_000
"""Samples of a source that are taken into memory to be measured on."""
MOST_NUMBERS = 200_000_000
"""All values of these together."""


@dataclass(frozen=True)
class Data:
    """The data of a config.

    Attributes:
        train: to train on.
        held_out: to measure on; None if there are none.
        shape: of a sample, and what the network is told.
        images: those in memory behind the two; None of a user's own source.
    """

    train: DataSource
    held_out: DataSource | None
    shape: DataShape
    images: Parts | None


def in_words(data: str) -> str:
    """The expression of a source that a path alone stands for: Parquet files, shards, a data set that was saved to disk."""
    lower, path = data.lower(), Path(data)
    if lower.endswith(".parquet"):
        return f"parquet({data!r})"
    if lower.endswith(".tar"):
        return f"webdataset({data!r})"
    saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    return f"huggingface({data!r})" if saved else data


def is_source(text: str) -> bool:
    """Whether a config's `data` names a registered source, rather than a path."""
    try:
        tree = parse_expression(with_quotes(in_words(text), NAMES))
    except ConfigError:
        return False
    name = tree.func if isinstance(tree, ast.Call) else tree
    return isinstance(name, ast.Name) and name.id in DATA


def build_data(config: Config, share: float | None = None, say: Callable[[str], None] | None = None) -> Data:
    """The data that a config names, as `_data`, seen through what the config augments them with."""
    ways = [make("augment", text, AUGMENTATIONS) for text in arguments(config.augment)]
    data = _data(config, share, say, ways)
    if not ways or folder_of(config.network) is not None:
        return data
    return replace(data, train=Augmented(data.train, ways, config.seed))


def _data(
    config: Config,
    share: float | None = None,
    say: Callable[[str], None] | None = None,
    ways: Sequence[Augmentation] = (),
) -> Data:
    """The data that a config names.

    Args:
        config: names them.
        share: of our own images to hold out, instead of the config's.
        say: is told what takes its time.
        ways: augmentations, of which latents know the mirror image.

    Raises:
        DataError: they cannot be read, or give no samples.
        ConfigError: an augmentation of latents that there is not; an argument of a source that does not fit.
    """
    folder = folder_of(config.network)
    source = _brought(config, folder) if is_source(config.data) else None
    if source is not None and not (folder is not None and isinstance(source, Pictures)):
        if folder is not None and isinstance(source, Samples):
            raise DataError(
                f"{config.data} is read from front to back, and latents are made once: give a source with numbered rows"
            )
        shape, held = _shape_of(source, config.data), _held_out_of(source, config.data)
        if shape.classes is not None and getattr(source, "droppable", False):
            source = WithNull(source, {"label": shape.classes}, config.label_dropout, config.seed)
        return Data(source, held, shape, None)
    if folder is not None:
        return _of_pipeline(config, folder, source or config.data, share, say, _mirrored(ways))
    part = config.held_out if share is None else share
    parts = load_parts(config.data, config.image_size, part, skip=config.skip_corrupt, say=say)
    return data_of(config, parts, data_shape(parts.train, config.labels))


def _of_pipeline(
    config: Config,
    folder: Path,
    pictures: str | Pictures,
    share: float | None,
    say: Callable[[str], None] | None,
    mirrored: float,
) -> Data:
    """Latents and text states by the pipeline's own parts."""
    train, held, shape = pipeline_data(
        folder,
        lambda: pretrained(folder),
        pictures,
        sides=sizes_of(config.image_size) or (pixels_of(folder),),
        held_out=config.held_out if share is None else share,
        dropout=config.label_dropout,
        seed=config.seed,
        mirrored=mirrored,
        say=say,
    )
    return Data(train, held, shape, None)


def _mirrored(ways: Sequence[Augmentation]) -> float:
    """The share of latents that are of mirror images.

    Raises:
        ConfigError: something else is asked for.
    """
    if not ways:
        return 0.0
    (only, *more) = ways
    if more or not isinstance(only, flip):
        raise ConfigError(
            "augment: latents are made once, of images and of their mirror images: flip is all there is, --augment flip"
        )
    return only.share


def data_of(config: Config, parts: Parts, shape: DataShape) -> Data:
    """Images in memory as a config trains on them."""
    train, told = parts.train, shape.classes is not None
    source: DataSource = images_as_rows(train, told, Order(len(train), config.seed), shape)
    if told:
        source = WithNull(source, {"label": shape.classes or 0}, config.label_dropout, config.seed)
    held = parts.held_out
    measured = None if held is None else images_as_rows(_numbered(held, shape), told, AsTheyAre(len(held)), shape)
    return Data(source, measured, shape, parts)


def _numbered(images: Images, shape: DataShape) -> Images:
    """With labels as the network knows them, which other data may number otherwise."""
    return replace(images, labels=labels_for(images, shape))


def build_shape(config: Config) -> DataShape:
    """The shape of a config's data; that of MNIST is known without reading it.

    Raises:
        DataError or ConfigError: as `build_data`.
    """
    if is_source(config.data) or folder_of(config.network) is not None:
        return _data(config).shape
    return load_shape(config.data, config.image_size, config.labels, skip=config.skip_corrupt)


def build_parts(config: Config, shape: DataShape) -> Parts:
    """The images of a config in memory, to measure a model of this shape on; of a source at most 10,000 samples each.

    Raises:
        DataError or ConfigError: as `build_data`.
    """
    if not is_source(config.data) and folder_of(config.network) is None:
        return load_parts(config.data, shape.image_size, config.held_out, skip=config.skip_corrupt)
    data = _data(replace(config, label_dropout=0.0))
    held = None if data.held_out is None else in_memory(data.held_out, shape, config.data)
    return Parts(in_memory(data.train, shape, config.data), held)


def in_memory(source: DataSource, shape: DataShape, name: str, most: int = MOST_MEASURED) -> Images:
    """The first samples of a source, with what the network is told of them."""
    count = available(source, min(most, max(2, MOST_NUMBERS // math.prod(shape.sample))))
    x0, cond, _ = asked(source, 0, Shard(0, count), count)
    if tuple(x0.shape[1:]) != shape.sample:
        raise DataError(f"{name} gives samples {tuple(x0.shape[1:])}, the run was trained on {shape.sample}")
    told = dict(cond or {})
    labels: Tensor | None = told.pop("label") if shape.classes is not None and "label" in told else None
    values = x0 if x0.dtype == torch.uint8 else x0.float()  # as training takes them
    own = getattr(getattr(source, "shape", None), "units", None)
    if own is not None and shape.units is not None and own != shape.units:  # other data, in the units of those trained on
        values = shape.units.normalised(own(values))
    return Images(values, labels, shape.classes or 0, name, shape.names, cond=told)


def _brought(config: Config, folder: Path | None) -> DataSource:
    """The source that an expression names; of a pipeline's folder in the size that it draws, unless the config has another."""
    size = said(pixels_of(folder)) if folder is not None and config.image_size is None else config.image_size
    context = {"seed": config.seed, "held_out": config.held_out, "skip_corrupt": config.skip_corrupt, "image_size": size}
    try:
        made = make("data", with_quotes(in_words(config.data), NAMES), NAMES, object, context)
    except DataError as error:
        kind = DataNotFoundError if isinstance(error, DataNotFoundError) else DataError
        raise kind(f"{_from(config.data)}{error}") from error
    if not isinstance(made, DataSource):
        got = type(made).__name__
        raise ConfigError(
            f"{_from(config.data)}data: {config.data} is a {got}: a source has get(step, shard, rows) and fingerprint()"
        )
    return made


def _held_out_of(source: DataSource, text: str) -> DataSource | None:
    held = getattr(source, "held_out", None)
    if held is not None and not isinstance(held, DataSource):
        got = type(held).__name__
        raise DataError(f"{_from(text)}held_out of {text} is a {got}: it is another data source, or None")
    return held


def _shape_of(source: DataSource, text: str) -> DataShape:
    try:
        return shape_of(source)
    except DataError as error:
        raise DataError(f"{_from(text)}{error}") from error


def _from(text: str) -> str:
    """my_parts.py: before what is said of a source of that file."""
    file = origin(text, (DATA.kind,))
    return f"{file}: " if file else ""
