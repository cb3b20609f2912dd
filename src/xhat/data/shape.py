"""What a network must know of the data."""

from dataclasses import dataclass, field
from typing import Literal

from xhat.data.images import Images
from xhat.errors import DataError


@dataclass(frozen=True)
class DataShape:
    """Image channels, side, and the number of classes it is conditioned on.

    Attributes:
        names: of the classes; empty where they are called 0, 1, ....
    """

    channels: int
    size: int
    classes: int | None
    names: tuple[str, ...] = field(default=(), compare=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, `classes` of them."""
        return self.names or tuple(map(str, range(self.classes or 0)))


def data_shape(data: Images, labels: Literal["auto"] | bool) -> DataShape:
    """What the network must know of these data.

    Args:
        data: the images.
        labels: whether it is to be conditioned on their labels; auto is if there are any.

    Raises:
        DataError: the network shall be conditioned on labels, and there are none.
    """
    channels, size = data.pixels.shape[1:3]
    if labels is True and data.labels is None:
        raise DataError(f"labels: true, but {data.name} has none: {data.found.unlabelled}; or set labels to auto or false")
    used = labels and data.labels is not None
    return DataShape(channels, size, data.classes if used else None, data.names if used else ())
