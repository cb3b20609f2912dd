"""What a network, a sampler and a picture must know of the data."""

from dataclasses import dataclass, field
from typing import Any, Literal, Self

from xhat.data.images import Images
from xhat.data.size import said
from xhat.data.units import Units
from xhat.errors import DataError

PIXELS = (-1.0, 1.0)
"""The range of images whose values stand for 0 to 255."""


@dataclass(frozen=True)
class DataShape:
    """The axes of a sample, and what the network is told with it.

    Attributes:
        channels: length of the first axis.
        size: side of square images; for other data the lengths of the other axes, () of vectors.
        classes: number of classes that the network is conditioned on; None where it is told none.
        names: of the classes; empty where they are called 0, 1, ....
        range: lowest and highest value, (-1, 1) of pictures; None where nobody knows.
        conditions: names of what else the network is told: whoever samples has to say values of it.
        units: what the values are to the user, of fields; None of what is as it is.
    """

    channels: int
    size: int | tuple[int, ...]
    classes: int | None
    names: tuple[str, ...] = field(default=(), compare=False)
    range: tuple[float, float] | None = field(default=PIXELS, compare=False)
    conditions: tuple[str, ...] = ()
    units: Units | None = field(default=None, compare=False)

    @classmethod
    def of(cls, sample: tuple[int, ...], classes: int | None = None, **rest: Any) -> Self:
        """That of samples of these axes, channels first."""
        channels, *inner = sample
        square = len(inner) == 2 and inner[0] == inner[1]
        return cls(channels, inner[0] if square else tuple(inner), classes, **rest)

    @property
    def sample(self) -> tuple[int, ...]:
        """The axes of a sample: (C, H, W) of images, (D,) of vectors."""
        inner = (self.size, self.size) if isinstance(self.size, int) else self.size
        return (self.channels, *inner)

    @property
    def side(self) -> int | None:
        """Of square images; None of anything else."""
        return self.size if isinstance(self.size, int) else None

    @property
    def image_size(self) -> int | str | None:
        """Of images, as a config has it: a side, or width and height."""
        if self.side is not None or len(self.sample) != 3:
            return self.side
        return said((self.sample[1], self.sample[2]))

    @property
    def is_picture(self) -> bool:
        """Whether a sample can be drawn: grey or colour, over two axes."""
        return len(self.sample) == 3 and self.channels in (1, 3) and self.units is None

    @property
    def is_eight_bit(self) -> bool:
        """Whether samples are kept as 8-bit pixels."""
        return len(self.sample) == 3 and self.range == PIXELS and self.units is None

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, `classes` of them."""
        return self.names or tuple(map(str, range(self.classes or 0)))

    def said(self) -> str:
        """In a few words: 1 channel of 28x28."""
        inner = "x".join(map(str, self.sample[1:]))
        channels = f"{self.channels} channel{'s' if self.channels != 1 else ''}"
        return f"{channels} of {inner}" if inner else f"vectors of {self.channels}"


def data_shape(data: Images, labels: Literal["auto"] | bool) -> DataShape:
    """What the network must know of these data.

    Args:
        data: the images.
        labels: whether it is to be conditioned on their labels; auto is if there are any.

    Raises:
        DataError: the network shall be conditioned on labels, and there are none.
    """
    if labels is True and data.labels is None:
        raise DataError(f"labels: true, but {data.name} has none: {data.found.unlabelled}; or set labels to auto or false")
    used = labels and data.labels is not None
    return DataShape.of(tuple(data.pixels.shape[1:]), data.classes if used else None, names=data.names if used else ())
