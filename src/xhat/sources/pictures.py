"""Pictures that are found by number and decoded when they are asked for, with a class or a caption each."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from xhat.data.batch import Batch
from xhat.data.lost import Lost
from xhat.data.reading import together
from xhat.data.rows import Rows, rows_with_held_out
from xhat.data.shape import PIXELS, DataShape
from xhat.data.size import Size
from xhat.errors import DataError
from xhat.sources.decoded import pixels_of, shape_of_pictures

LOOKED_AT = 16


class Pictures(Rows):
    """A data source of pictures; `texts` and `pixels` are for whoever makes latents of them."""

    decodes = decoded_alike = True
    lost: Lost
    pixels: Callable[[int, int], Tensor]
    words: Callable[[], list[str]] | None = None

    def texts(self) -> list[str]:
        """What each picture shows: its caption, or the name of its class.

        Raises:
            DataError: nobody says.
        """
        if self.words is None:
            raise DataError(f"{self.name}: what do the pictures show? name a column, caption=... or label=...")
        return self.words()


def pictures_as_rows(
    picture: Callable[[int], Image.Image],
    length: int,
    mark: str,
    name: str,
    *,
    size: Size | None,
    labels: Tensor | None = None,
    names: Sequence[str] = (),
    classes: int | None = None,
    captions: Callable[[], list[str]] | None = None,
    held_out: float,
    seed: int,
    skip: bool,
) -> Pictures:
    """A source of pictures.

    Args:
        picture: number -> the image, or a DataError.
        length: how many there are.
        mark: their fingerprint.
        name: for messages.
        size: height and width; None is that of `shape_of_pictures`.
        labels: class numbers (N,), which the network is told.
        names: of the classes.
        classes: how many.
        captions: gives a text for each, which terms see as draw.extra["prompt"].
        held_out: share to measure on.
        seed: of the order.
        skip: take the next picture for one that cannot be read.

    Raises:
        DataError: there are none, or the first cannot be read and are not to be skipped.
    """
    if not length:
        raise DataError(f"{name} holds no images")
    lost = Lost()
    looked = torch.linspace(0, length - 1, min(LOOKED_AT, length)).long().tolist()
    seen = list[Image.Image]()
    for number in looked:
        lost.good(number, length, lambda k: _kept(seen, picture(k)), skip=skip)
    channels, sides = shape_of_pictures(seen, size)
    texts = None if captions is None else captions()

    def one(number: int) -> Batch:
        cond = None if labels is None else {"label": labels[number]}
        extra = None if texts is None else {"prompt": texts[number]}
        return Batch(pixels_of(picture(number), sides, channels), cond, extra)

    def at(index: Tensor) -> Batch:
        return together([lost.good(number, length, one, skip=skip) for number in index.tolist()])

    shape = DataShape.of((channels, *sides), classes, names=tuple(names), range=PIXELS)
    rows = rows_with_held_out(
        at, length, f"{mark} {sides} {channels}", name, share=held_out, seed=seed, shape=shape, labels=labels
    )
    found = Pictures(rows.at, rows.length, rows.mark, rows.order, name, shape, rows.held_out)
    found.lost, found.droppable, found.words = lost, labels is not None, captions
    if captions is None and labels is not None:
        called = names or tuple(map(str, range(classes or 0)))
        found.words = lambda: [called[label] for label in labels.tolist()]
    found.pixels = lambda first, end: torch.stack([pixels_of(picture(k), sides, 3) for k in range(first, end)])
    return found


def _kept(seen: list[Image.Image], picture: Image.Image) -> Batch:
    seen.append(picture)
    return Batch(torch.zeros(1, 1))
