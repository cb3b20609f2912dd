"""Values that are not 8-bit pixels: what range they have, and the one factor that makes pixels of a whole data set."""

import numpy as np

Range = tuple[float, float]
EIGHT_BITS: Range = (0.0, 255.0)
ROWS = 256
_FORMULAS = {
    (0.0, 1.0): "(255 * x).round().astype('uint8')",
    (-1.0, 1.0): "(127.5 * (x + 1)).round().astype('uint8')",
    EIGHT_BITS: "x.round().astype('uint8')",
}


def scale_of(lowest: float, highest: float, whole: bool) -> Range:
    """The values that become black and white, the same for all images of a data set.

    Whole numbers from 0 are pixels of some number of bits: white is the smallest 2^k - 1, at least 255, that no value exceeds.
    So 12 bits in a 16-bit file are not dark, and two parts of the same data get the same scale. Others are taken as 0..1, -1..1
    or 0..255 where they fit, else from their lowest to their highest.

    Args:
        lowest: of all values.
        highest: of all values.
        whole: whether the values are of an integer type.
    """
    if whole and lowest >= 0:
        return 0.0, float(2 ** max(8, int(highest).bit_length()) - 1)
    named = next((r for r in _FORMULAS if r[0] <= lowest and highest <= r[1]), None)
    return named or (lowest, highest if highest > lowest else lowest + 1)


def to_pixels(values: np.ndarray, scale: Range) -> np.ndarray:
    """Values, of which `scale` become 0 and 255, as uint8 of the same shape."""
    low, high = scale
    pixels = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), ROWS):  # in parts: in float64 they take eight times the memory
        part = values[first : first + ROWS].astype(np.float64)
        pixels[first : first + ROWS] = ((part - low) * (255 / (high - low))).clip(0, 255).round()
    return pixels


def how_to_save(values: np.ndarray) -> str:
    """What to do with values that are no pixels, by the range they have."""
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite([lowest, highest]).all():
        return "some of its values are not finite"
    found = f"its values are {lowest:.4g} to {highest:.4g}: "
    formula = _FORMULAS.get(scale_of(lowest, highest, whole=False))
    return found + (f"save {formula}" if formula else "fields in other units are read by --data 'fields(FILE)'")
