"""Height and width of images, as people write them."""

from xhat.errors import ConfigError

Size = tuple[int, int]
"""Height and width."""
LEAST, MOST = 4, 4096


def size_of(given: int | str | Size | None) -> Size | None:
    """Height and width of 64, which is the side of a square, or of "64x96", which is as wide as 64 and as high as 96.

    Raises:
        ConfigError: it is neither, or too small or too large.
    """
    if given is None or isinstance(given, tuple):
        return given
    sides = str(given).lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and side.isascii() for side in sides):
        raise ConfigError(f'image_size must be a side, such as 64, or width and height, such as 64x96, got "{given}"')
    width, height = int(sides[0]), int(sides[-1])
    for side in (width, height):
        if not LEAST <= side <= MOST:
            raise ConfigError(f"image_size must be in [{LEAST}, {MOST}], got {side}")
    return height, width


def said(size: Size) -> str:
    """As it is written: width and height."""
    return f"{size[1]}x{size[0]}"
