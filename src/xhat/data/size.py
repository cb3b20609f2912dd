"""Height and width of images, as people write them."""

from xhat.budgets import LEAST_SIDE, MOST_SIDE
from xhat.errors import ConfigError

Size = tuple[int, int]
"""Height and width."""


def size_of(given: int | str | Size | None) -> Size | None:
    """Height and width of 64, which is the side of a square, or of "64x96", which is as wide as 64 and as high as 96.

    Raises:
        ConfigError: it is neither, or too small or too large.
    """
    if given is None or isinstance(given, tuple):
        return given
    if "," in str(given):
        raise ConfigError(f"image_size {given}: several sizes are for a pipeline and a folder of captioned pictures: name one")
    sides = str(given).lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and side.isascii() for side in sides):
        raise ConfigError(f'image_size must be a side, such as 64, or width and height, such as 64x96, got "{given}"')
    width, height = int(sides[0]), int(sides[-1])
    for side in (width, height):
        if not LEAST_SIDE <= side <= MOST_SIDE:
            raise ConfigError(f"image_size must be in [{LEAST_SIDE}, {MOST_SIDE}], got {side}")
    return height, width


def sizes_of(given: int | str | None) -> tuple[Size, ...]:
    """Those of "512, 640x384, 384x640", each as of `size_of`; none of None.

    Raises:
        ConfigError: one is none, or is named twice.
    """
    found = [size for text in ([] if given is None else str(given).split(",")) if (size := size_of(text.strip())) is not None]
    if len(set(found)) < len(found):
        raise ConfigError(f"image_size {given} names a size twice")
    return tuple(found)


def said(size: Size) -> str:
    """As it is written: width and height."""
    return f"{size[1]}x{size[0]}"
