"""Data of a pipeline: latents of captioned images, or prompts alone, as a source of batches."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat import rng
from xhat.data.aside import aside
from xhat.data.batch import Batch
from xhat.data.captions import read_captions, read_prompts
from xhat.data.images import Images, to_float
from xhat.data.load import load
from xhat.data.null import WithNull
from xhat.data.order import AsTheyAre, Order
from xhat.data.parts import in_channels
from xhat.data.picture import FileError, read_head, read_pixels
from xhat.data.rows import Visits
from xhat.data.scale import EIGHT_BITS
from xhat.data.shape import DataShape
from xhat.data.source import DataSource
from xhat.errors import DataError
from xhat.files.atomic import read_bytes
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
    side: tuple[int, int],
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
        side: height and width of the images in pixels.
        held_out: share to set aside.
        dropout: share of samples that are trained without their prompt.
        seed: of the order, of the draws of latents, of what is mirrored and of the dropout.
        mirrored: share of the samples whose mirror images are trained on.
        say: is told what takes its time.

    Raises:
        DataError: as for `read_captions`, or images that cannot be read.
    """
    told = _told(data, side)
    swapped = _mirrored(told) if mirrored else None
    of = encoded(folder, told, open_pipeline, say)
    shape = DataShape.of(of.latent, None, range=None, conditions=(*of.texts, *of.sizes))
    rows, out = (torch.arange(told.samples), None) if of.mean is None else aside(told.samples, held_out)
    measured = None if out is None else LatentRows(of, out, AsTheyAre(len(out)), shape, None)
    other = None if swapped is None else encoded(folder, swapped, open_pipeline, say)
    train = LatentRows(of, rows, Order(len(rows), seed), shape, seed, measured, other, mirrored)
    if not dropout or not of.null:
        return train, measured, shape
    null = {name: value for name, value in of.null.items() if name in of.texts}
    return WithNull(train, null, dropout, seed), measured, shape


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


def _of_folder(root: Path, name: str, side: tuple[int, int]) -> Told:
    """Images with captions, read when they are encoded: at 8 bits, the shorter side resized, the centre cropped."""
    found = read_captions(root)
    heads = [read_head(path) for path in found.paths]
    if odd := next((head.path for head in heads if len(head.pages) > 1 or any(page.deep for page in head.pages)), None):
        raise FileError(odd, "has several pages, or more than 8 bits a channel", "convert it to one 8-bit image")

    def pixels(first: int, end: int) -> Tensor:
        read = [torch.from_numpy(read_pixels(head, side, EIGHT_BITS)[0]) for head in heads[first:end]]
        return to_float(torch.stack([image.expand(3, -1, -1) for image in read]))

    names = [str(path.relative_to(root)).encode() for path in found.paths]
    contents = (read_bytes(path) for path in found.paths)
    mark = hash_of(*names, *(caption.encode() for caption in found.captions), *(hash_of(c).encode() for c in contents))
    return Told(pixels, len(heads), found.captions, f"images {mark}", name, side)


def _of_images(name: str, side: tuple[int, int]) -> Told:
    """Images with labels, whose class names are the prompts."""
    images: Images = in_channels(load(name, side), 3)
    if images.labels is None:
        raise DataError(f"{name} has images without captions or labels: give a folder with captions, or a .txt of prompts")
    names = images.class_names
    prompts = [names[label] for label in images.labels.tolist()]
    mark = f"{images.fingerprint()} {images.labels_fingerprint()}"
    return Told(lambda i, j: to_float(images.pixels[i:j]), len(images), prompts, mark, name, side)
