"""What a network must know of the data."""

from dataclasses import dataclass, field


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
