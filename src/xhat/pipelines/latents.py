"""Data of a pipeline: latents of captioned images, or prompts alone, as a source of batches."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat import rng
from xhat.data.aside import aside
from xhat.data.batch import Batch
from xhat.data.captions import Captioned, read_captions, read_prompts
from xhat.data.images import Images, to_float
from xhat.data.load import load
from xhat.data.null import WithNull
from xhat.data.order import AsTheyAre, Order
from xhat.data.parts import in_channels
from xhat.data.picture import FileError, Head, read_head, read_pixels
from xhat.data.rows import Visits
from xhat.data.scale import EIGHT_BITS
from xhat.data.shape import DataShape
from xhat.data.size import Size, said
from xhat.data.source import DataSource
from xhat.errors import DataError
from xhat.files.atomic import read_bytes
from xhat.pipelines.buckets import Buckets, sorted_into
from xhat.pipelines.encoded import Encoded, Told, encoded
from xhat.rng import Shard
from xhat.sources.pictures import Pictures

PROMPT_FILES = (".txt", ".jsonl")


@dataclass(frozen=True)
class LatentRows:
    """Latents, drawn anew each time from what the autoencoder says of each image, and what the network is told of them.

    Attributes:
        of: latents and text states.
        rows: numbers of the samples in them.
        order: in which training visits these.
        shape: of a sample.
        seed: of the draws; None takes the means.
        held_out: samples to measure on.
        mirrored: latents of the mirror images, where training sees some; an autoencoder's are not mirror images of latents.
        share: of the samples that are mirrored.
    """

    of: Encoded
    rows: Tensor
    order: Visits
    shape: DataShape
    seed: int | None
    held_out: "LatentRows | None" = None
    mirrored: Encoded | None = None
    share: float = 0.0

    @property
    def name(self) -> str:
        """For messages."""
        return self.of.name

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`; without images x0 has a shape and no values (it is on the meta device)."""
        index = self.rows[self.order.indices(step * shard.total + shard.first, rows)]
        which = self.of.which[index]
        cond = {name: value[which] for name, value in self.of.texts.items()}
        cond |= {name: value.expand(rows, *value.shape[1:]) for name, value in self.of.sizes.items()}
        return Batch(self._x0(index, step, shard), cond or None, {"prompt": [self.of.prompts[i] for i in index.tolist()]})

    def _x0(self, index: Tensor, step: int, shard: Shard) -> Tensor:
        if self.of.mean is None or self.of.std is None:
            return torch.empty(len(index), *self.of.latent, device="meta")
        mean, std = self.of.mean[index], self.of.std[index]
        if self.seed is None:
            return mean
        if self.mirrored is not None and self.mirrored.mean is not None and self.mirrored.std is not None:
            chance = torch.rand(shard.total, generator=rng.generator(self.seed, "mirrored", step))
            swap = (chance[shard.first : shard.first + len(index)] < self.share).reshape(-1, *(1,) * (mean.ndim - 1))
            mean, std = (torch.where(swap, b[index], a) for a, b in ((mean, self.mirrored.mean), (std, self.mirrored.std)))
        return torch.addcmul(mean, std, rng.normal(tuple(mean.shape), self.seed, "latents", step, first=shard.first))

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """As of `DataSource`."""
        return self.of.mark


def pipeline_data(
    folder: Path,
    open_pipeline: Callable[[], Any],
    data: str | Pictures,
    *,
    sides: Sequence[Size],
    held_out: float,
    dropout: float,
    seed: int,
    mirrored: float = 0.0,
    say: Callable[[str], None] | None = None,
) -> tuple[DataSource, LatentRows | None, DataShape]:
    """To train on, to measure on, and the shape of a sample.

    Args:
        folder: of the pipeline.
        open_pipeline: gives a `Pretrained`, where latents are not in the cache.
        data: a folder of images with captions; labelled images, whose classes are the prompts; a file of prompts; or a
            source of pictures with captions or labels.
        sides: heights and widths of the images in pixels; of several each picture of a folder is of the nearest shape.
        held_out: share to set aside, of several sizes of the most frequent.
        dropout: share of samples that are trained without their prompt.
        seed: of the order, of the draws of latents, of what is mirrored and of the dropout.
        mirrored: share of the samples whose mirror images are trained on.
        say: is told what takes its time.

    Raises:
        DataError: as for `read_captions`, or images that cannot be read.
    """

    def rows_of(told: Told, held_out: float, seed: int) -> LatentRows:
        """Images and prompts of one size."""
        swapped = _mirrored(told) if mirrored else None
        of = encoded(folder, told, open_pipeline, say)
        shape = DataShape.of(of.latent, None, range=None, conditions=(*of.texts, *of.sizes))
        rows, out = (torch.arange(told.samples), None) if of.mean is None else aside(told.samples, held_out)
        measured = None if out is None else LatentRows(of, out, AsTheyAre(len(out)), shape, None)
        other = None if swapped is None else encoded(folder, swapped, open_pipeline, say)
        return LatentRows(of, rows, Order(len(rows), seed), shape, seed, measured, other, mirrored)

    train: DataSource = (
        rows_of(_told(data, sides[0]), held_out, seed) if len(sides) == 1 else _bucketed(data, sides, rows_of, held_out, seed)
    )
    first = train.parts[0] if isinstance(train, Buckets) else train
    assert isinstance(first, LatentRows)
    measured, shape, of = first.held_out, first.shape, first.of
    if not dropout or not of.null:
        return train, measured, shape
    null = {name: value for name, value in of.null.items() if name in of.texts}
    return WithNull(train, null, dropout, seed), measured, shape


def _bucketed(
    data: str | Pictures,
    sides: Sequence[Size],
    rows_of: Callable[[Told, float, int], LatentRows],
    held_out: float,
    seed: int,
) -> Buckets:
    """Pictures of a folder, sorted by their shapes; those of the most frequent size are measured on.

    Raises:
        DataError: no folder.
    """
    root = Path(data).expanduser() if isinstance(data, str) else None
    if root is None or not root.is_dir():
        name = data if isinstance(data, str) else data.name
        raise DataError(f"{name}: several sizes of image_size are for a folder of pictures with captions: name one")
    found = _captioned(root)
    sizes = [head.pages[0].size for head in found[1]]
    made: list[LatentRows] = []

    def make(side: Size, rows: list[int]) -> LatentRows:
        told, own = _told_of(root, f"{data}, {said(side)}", side, *found, rows), rng.generator(seed, "size", len(made))
        number = own.initial_seed() % 2**31 if made else seed
        made.append(rows_of(told, 0.0 if made else held_out, number))
        return made[-1]

    parts = sorted_into(sides, sizes, make)
    return Buckets(parts, made[0].held_out, seed)


def _mirrored(told: Told) -> Told:
    """The mirror images, with one prompt for all: what they show is known.

    Raises:
        DataError: there are no images.
    """
    pixels = told.pixels
    if pixels is None:
        raise DataError(f"augment: {told.name} holds prompts alone, and nothing to mirror: leave augment out")
    return told._replace(
        pixels=lambda i, j: pixels(i, j).flip(-1),
        prompts=[""] * told.samples,
        mark=f"{told.mark} mirrored",
        name=f"{told.name}, mirrored",
    )


def _told(data: str | Pictures, side: tuple[int, int]) -> Told:
    if isinstance(data, Pictures):
        prompts = data.texts()
        return Told(lambda i, j: to_float(data.pixels(i, j)), len(prompts), prompts, f"{data.fingerprint()}", data.name, side)
    path = Path(data).expanduser()
    if path.suffix in PROMPT_FILES and path.is_file():
        prompts = read_prompts(path)
        return Told(None, len(prompts), prompts, f"prompts {hash_of(repr(prompts).encode())}", data, side)
    return _of_folder(path, data, side) if path.is_dir() else _of_images(data, side)


def hash_of(*parts: bytes) -> str:
    """A checksum of bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _of_folder(root: Path, name: str, side: Size) -> Told:
    """Images with captions, read when they are encoded: at 8 bits, the shorter side resized, the centre cropped."""
    found = _captioned(root)
    return _told_of(root, name, side, *found, range(len(found[1])))


def _captioned(root: Path) -> tuple[Captioned, list[Head]]:
    """Pictures and captions of a folder, and what is known of their files."""
    found = read_captions(root)
    heads = [read_head(path) for path in found.paths]
    if odd := next((head.path for head in heads if len(head.pages) > 1 or any(page.deep for page in head.pages)), None):
        raise FileError(odd, "has several pages, or more than 8 bits a channel", "convert it to one 8-bit image")
    return found, heads


def _told_of(root: Path, name: str, side: Size, found: Captioned, heads: list[Head], rows: Sequence[int]) -> Told:
    """Some pictures of a folder, in one size."""
    paths, captions = [found.paths[i] for i in rows], [found.captions[i] for i in rows]

    def pixels(first: int, end: int) -> Tensor:
        read = [torch.from_numpy(read_pixels(heads[i], side, EIGHT_BITS)[0]) for i in rows[first:end]]
        return to_float(torch.stack([image.expand(3, -1, -1) for image in read]))

    names = [str(path.relative_to(root)).encode() for path in paths]
    contents = (read_bytes(path) for path in paths)
    mark = hash_of(*names, *(caption.encode() for caption in captions), *(hash_of(c).encode() for c in contents))
    return Told(pixels, len(paths), captions, f"images {mark}", name, side)


def _of_images(name: str, side: tuple[int, int]) -> Told:
    """Images with labels, whose class names are the prompts."""
    images: Images = in_channels(load(name, side), 3)
    if images.labels is None:
        raise DataError(f"{name} has images without captions or labels: give a folder with captions, or a .txt of prompts")
    names = images.class_names
    prompts = [names[label] for label in images.labels.tolist()]
    mark = f"{images.fingerprint()} {images.labels_fingerprint()}"
    return Told(lambda i, j: to_float(images.pixels[i:j]), len(images), prompts, mark, name, side)
