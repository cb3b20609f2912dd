"""What stands between a user's values and the numbers that a network sees: a map, a shift and a scale for each channel."""

import math
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xhat.errors import ConfigError, DataError
from xhat.registry import MAPS, UNITS

COARSE, SMALL, LARGE = 1e4, 1e-30, 1e30
"""An offset in units of the spread from which float32 is too coarse, and scales within which it is at ease."""


class Map(Protocol):
    """An increasing function of values, applied before the shift and the scale: a registered dataclass of numbers."""

    def __call__(self, values: Tensor) -> Tensor:
        """What is shifted and scaled."""
        ...

    def inverse(self, mapped: Tensor) -> Tensor:
        """The values again."""
        ...


@MAPS.register
@dataclass(frozen=True)
class log:
    """ln(v + offset), of positive values that span decades: permeabilities, densities, concentrations.

    Args:
        offset: that is added first, in units of the values.
    """

    offset: float = 0.0

    def __call__(self, values: Tensor) -> Tensor:
        return (values + self.offset).log()

    def inverse(self, mapped: Tensor) -> Tensor:
        return mapped.exp() - self.offset


@MAPS.register
@dataclass(frozen=True)
class asinh:
    """asinh(v / scale): linear below the scale, logarithmic above it, of either sign.

    Args:
        scale: where the one becomes the other, in units of the values.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"asinh({self.scale}): the scale is above 0")

    def __call__(self, values: Tensor) -> Tensor:
        return (values / self.scale).asinh()

    def inverse(self, mapped: Tensor) -> Tensor:
        return mapped.sinh() * self.scale


@dataclass(frozen=True)
class Units:
    """x = (f(v) - shift) / scale, channel by channel; called with x it gives the user's values v.

    Attributes:
        shift: one for each channel, or one for all.
        scale: likewise, positive.
        map: name and numbers of f among the registered maps; None is f(v) = v.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    map: tuple[str, tuple[float, ...]] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Values in the user's units, with their gradient, of normalised ones (B, C, ...); float64 if float32 is too coarse."""
        x = x.double() if self.fine else x
        shift, scale = self._over(x)
        mapped = x * scale + shift
        return mapped if self.map is None else self._map().inverse(mapped)

    def normalised(self, values: Tensor) -> Tensor:
        """What the network sees of values (B, C, ...), in float32 at least."""
        values = values if values.is_floating_point() and values.dtype != torch.float16 else values.float()
        values = values.double() if self.fine else values
        shift, scale = self._over(values)
        return ((values if self.map is None else self._map()(values)) - shift) / scale

    @property
    def fine(self) -> bool:
        """Whether float32 cannot tell neighbouring values apart, or has none so large or so small."""
        count = max(len(self.shift), len(self.scale))
        pairs = zip(self.shift * (count // len(self.shift)), self.scale * (count // len(self.scale)), strict=True)
        return any(abs(shift) > COARSE * scale or not SMALL < scale < LARGE for shift, scale in pairs)

    def volume(self, x: Tensor) -> Tensor:
        """log |dv/dx| of each sample, (B,): what a density in the user's units is smaller by, in nats."""
        x = x.double() if self.fine else x
        _, scale = self._over(x)
        found = scale.log().expand_as(x).flatten(1).sum(1)
        if self.map is None:
            return found
        with torch.enable_grad():
            shift, _ = self._over(x)
            mapped = (x.detach() * scale + shift).requires_grad_()
            (slope,) = torch.autograd.grad(self._map().inverse(mapped).sum(), mapped)
        return found + slope.abs().log().flatten(1).sum(1)

    def _over(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count = max(len(self.shift), len(self.scale))
        if count not in (1, x.shape[1]):
            raise ValueError(f"units of {count} channels for samples of {x.shape[1]}")
        axes = (-1, *(1,) * (x.ndim - 2))
        return x.new_tensor(self.shift).reshape(axes), x.new_tensor(self.scale).reshape(axes)

    def _map(self) -> Map:
        assert self.map is not None
        name, numbers = self.map
        if name not in MAPS:
            raise DataError(f"the values were normalised by a map {name} that nobody has registered: bring it with --use")
        found: Map = MAPS[name](*numbers)
        return found


@dataclass(frozen=True)
class Statistics:
    """What is known of the values of each channel, after the map.

    Attributes:
        mean: of each.
        deviation: standard deviation.
        lowest: of each.
        highest: of each.
        whole: whether the values are of an integer type.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    whole: bool


class Normalisation(Protocol):
    """Chooses units by the statistics of training samples.

    Attributes:
        map: applied to the values first; None is none.
    """

    @property
    def map(self) -> Any: ...

    def units(self, found: Statistics) -> Units:
        """Those of values with these statistics."""
        ...


@UNITS.register
@dataclass(frozen=True)
class standard:
    """Mean 0 and standard deviation 1 in each channel, of the training samples.

    Args:
        map: log() or asinh(), applied first.
    """

    map: Any = None

    def units(self, found: Statistics) -> Units:
        for low, high, deviation in zip(found.lowest, found.highest, found.deviation, strict=True):
            if low < high and not 0 < deviation < math.inf:
                raise ConfigError(f"the spread of values of {low:g} to {high:g} cannot be computed: rescale them")
        return _made(found.mean, found.deviation, self.map)


@UNITS.register
@dataclass(frozen=True)
class min_max:
    """-1 for the lowest and 1 for the highest value of each channel, of the training samples.

    Args:
        map: log() or asinh(), applied first.
    """

    map: Any = None

    def units(self, found: Statistics) -> Units:
        ends = list(zip(found.lowest, found.highest, strict=True))
        return _made(tuple((a + b) / 2 for a, b in ends), tuple((b - a) / 2 for a, b in ends), self.map)


@UNITS.register
@dataclass(frozen=True)
class bits:
    """Whole numbers from 0 on one scale for all channels and samples: 0 is -1, the smallest 2^k - 1 that none exceeds is 1."""

    map: Any = None

    def units(self, found: Statistics) -> Units:
        highest = max(found.highest)
        if not found.whole or min(found.lowest) < 0:
            raise ConfigError("bits is for whole numbers from 0: choose standard, min_max or given(shift, scale)")
        half = (2 ** max(1, int(highest).bit_length()) - 1) / 2
        return Units((half,), (half,))


@UNITS.register
@dataclass(frozen=True)
class given:
    """(v - shift) / scale with numbers that are known: one for all channels, or one each.

    Args:
        shift: in units of the values, or of what the map makes of them.
        scale: likewise, positive.
        map: log() or asinh(), applied first.
    """

    shift: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    map: Any = None

    def __post_init__(self) -> None:
        shift, scale = _several(self.shift), _several(self.scale)
        if not all(math.isfinite(s) for s in (*shift, *scale)) or min(scale) <= 0:
            raise ConfigError(f"given(shift={self.shift}, scale={self.scale}): finite numbers, and scales above 0")
        if len({len(shift), len(scale)} - {1}) > 1:
            raise ConfigError(
                f"given has {len(shift)} shifts and {len(scale)} scales: give one for all, or one for each channel"
            )

    def units(self, found: Statistics) -> Units:
        shift, scale = _several(self.shift), _several(self.scale)
        channels = len(found.mean)
        if max(len(shift), len(scale)) not in (1, channels):
            raise ConfigError(f"given is of {max(len(shift), len(scale))} channels, the data have {channels}")
        return _made(shift, scale, self.map)


def _several(numbers: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(map(float, numbers)) if isinstance(numbers, tuple) else (float(numbers),)


def _made(shift: tuple[float, ...], scale: tuple[float, ...], map: Any) -> Units:
    """A channel that is the same everywhere has no scale: a thousandth of its value, so that samples of it are nearly that."""
    own = shift * (len(scale) // len(shift))
    kept = tuple(s if s > 0 else 1e-3 * max(abs(v), 1e-3) for s, v in zip(scale, own, strict=False))
    kept = kept if len(kept) == len(scale) else scale
    return Units(shift, kept, None if map is None else named(map))


def named(map: Any) -> tuple[str, tuple[float, ...]]:
    """A map by its name and its numbers, as a run keeps it.

    Raises:
        ConfigError: it is none that was registered.
    """
    name = type(map).__name__
    try:
        numbers = tuple(float(number) for number in astuple(map))
        if MAPS[name] is not type(map):
            raise KeyError(name)
    except (KeyError, TypeError, ValueError):
        known = ", ".join(MAPS)
        raise ConfigError(f"a map is a registered dataclass of numbers, such as {known}, got {map!r}") from None
    return name, numbers


def said(units: Units) -> str:
    """In a few words: normalised by log, shift 0.2, 1 and scale 1, 3."""
    map = "" if units.map is None else f"{units.map[0]}({', '.join(f'{n:g}' for n in units.map[1])}), "
    shift, scale = (
        ", ".join(f"{n:.4g}" for n in numbers[:4]) + ", ..." * (len(numbers) > 4) for numbers in (units.shift, units.scale)
    )
    return f"normalised by {map}shift {shift} and scale {scale}"
