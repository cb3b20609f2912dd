"""Fields, signals, volumes and tables: floats of any number of channels and any rank, in the user's own units."""

import difflib
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xhat.data.aside import aside
from xhat.data.batch import Batch
from xhat.data.order import AsTheyAre, Order
from xhat.data.rows import Rows
from xhat.data.shape import DataShape
from xhat.data.stack import Stack, parts_of
from xhat.data.units import Normalisation, Statistics, Units, bits, named, standard
from xhat.data.wording import counted
from xhat.errors import ConfigError, DataError
from xhat.registry import DATA, MAPS, UNITS
from xhat.sources.labels import labels_of
from xhat.sources.values import values_of

MOST_CHANNELS, FEW_CHANNELS, MOST_HELD_OUT = 16, 4, 0.5
"""Of more channels than the first, or a last axis as short as the second, it is asked where the channels are."""


class Fields(Rows):
    """Rows of fields: `units` says what their values mean, `left_out` how many samples were corrupt."""

    units: Units
    constant = True
    left_out: int = 0
    notes: tuple[str, ...] = ()


@DATA.register
def fields(
    *files: str,
    units: Any = None,
    channel_axis: int | Literal["auto"] | None = "auto",
    label: str | None = None,
    array: str | None = None,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> Fields:
    """Samples in the user's own units: fields (N, C, H, W), signals (N, C, L), volumes (N, C, D, H, W), tables (N, D).

    They are read when they are asked for, and normalised channel by channel as `units` says; samples that a run draws come out
    in the user's units again, and penalties see these.

    Args:
        files: .npy, .npz, raw bytes, or folders with a .npy or an image file for each sample; several are stacked as
            channels.
        units: standard(), min_max(), given(shift, scale) or bits(), each with a map such as log(); by default bits() of
            whole numbers from 0, else standard(). They are of the training samples.
        channel_axis: of the files' arrays, counted from 0; None is that there is no axis of channels. By default 1, with
            at most 16.
        label: a .npy of a class for each sample, which the network is told.
        array: of an .npz, which one.
        dtype: of raw bytes, such as float32 or >f4.
        shape: of raw bytes, (N, ...); N may be -1.
        held_out: share of the samples to measure on.
        seed: of the order.
        skip_corrupt: leave out samples with values that are not finite, instead of refusing them.

    Raises:
        DataError: the files do not fit together, or hold something else.
    """
    if not files:
        raise DataError("fields() names no file: fields(darcy.npy), or several whose arrays are stacked as channels")
    if not 0 <= held_out <= MOST_HELD_OUT:
        raise DataError(f"fields(held_out={held_out}): a share of 0 to {MOST_HELD_OUT:g}")
    read = [values_of(file, array=array, dtype=dtype, shape=shape, skip=skip_corrupt) for file in files]
    stacks = [_channels_first(file, found.stack, channel_axis) for file, found in zip(files, read, strict=True)]
    values, name = _together(files, stacks), ", ".join(files)
    labels, classes, names = (None, None, ()) if label is None else labels_of(label, len(values))
    kept, out = aside(len(values), held_out, labels)
    normalisation = _normalisation(units) if units is not None else bits() if _is_whole(values) else standard()
    scan = _Scan.of(values, kept, normalisation.map, name, skip_corrupt)
    found = normalisation.units(scan.statistics)
    if len(scan.corrupt):
        keep = torch.ones(len(values), dtype=torch.bool)
        keep[scan.corrupt] = False
        kept, out = kept[keep[kept]], None if out is None else out[keep[out]]

    def at(index: Tensor) -> Batch:
        cond = {} if labels is None else {"label": labels[index]}
        return Batch(found.normalised(values[index]).float(), cond or None)

    shape_ = DataShape.of(values.shape[1:], classes, names=names, range=None, units=found)
    told = "" if labels is None else f" {zlib.crc32(labels.numpy().data, zlib.crc32(repr(names).encode())):08x}"
    mark = f"{values.shape} {scan.crc:08x} {found}{told}"
    held = None if out is None else Rows(lambda i: at(out[i]), len(out), f"{mark} held out", AsTheyAre(len(out)), name, shape_)
    rows = Fields(lambda i: at(kept[i]), len(kept), f"{mark} {len(kept)} {seed}", Order(len(kept), seed), name, shape_, held)
    rows.units, rows.droppable = found, labels is not None
    rows.left_out = len(scan.corrupt) + sum(of.left_out for of in read)
    lost = f"{counted(len(scan.corrupt), 'sample')} that are not finite, {_numbers(scan.corrupt.tolist())}"
    rows.notes = tuple(note for of in read for note in of.notes) + (f"{name}: left out: {lost}",) * bool(len(scan.corrupt))
    rows.notes += tuple(
        f"{name}: channel {k} is {low:g} everywhere: there is nothing to learn of it"
        for k, (low, high) in enumerate(zip(scan.statistics.lowest, scan.statistics.highest, strict=True))
        if low == high
    )
    return rows


def _normalisation(units: Any) -> Normalisation:
    if not hasattr(units, "units"):
        close = difflib.get_close_matches(str(units), UNITS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(UNITS)}"
        raise ConfigError(f'unknown name "{units}" for units: {hint}')
    found: Normalisation = units
    return found


def _channels_first(file: str, stack: Stack, axis: int | Literal["auto"] | None) -> Stack:
    """(N, C, ...) of an array with its channels elsewhere, or none."""
    sample = stack.shape[1:]
    if len(sample) == 1:  # vectors
        return stack
    if isinstance(axis, bool) or not (axis is None or axis == "auto" or isinstance(axis, int)):
        raise DataError(f"{file}: channel_axis is a whole number or None, got {axis!r}")
    if axis == "auto":
        last = sample[-1] <= FEW_CHANNELS < min(sample[:-1])
        if sample[0] > MOST_CHANNELS or last:
            raise DataError(
                f"{file}: are its samples {sample} of {sample[0]} channels? say channel_axis=1 if they are, None if they "
                "have no axis of channels, channel_axis=-1 if it is the last"
            )
        axis = 1
    if axis is None:
        return stack.each(lambda part: part.unsqueeze(1), (1, *sample), stack.dtype)
    place = axis if axis >= 0 else axis + len(stack.shape)
    if not 1 <= place < len(stack.shape):
        raise DataError(f"{file}: channel_axis {axis} of an array {stack.shape}: it is 1 to {len(stack.shape) - 1}, or None")
    moved = (sample[place - 1], *sample[: place - 1], *sample[place:])
    return stack.each(lambda part: part.movedim(place, 1), moved, stack.dtype)


def _together(files: tuple[str, ...], stacks: list[Stack]) -> Stack:
    """Several as channels of one."""
    first = stacks[0]
    for file, stack in zip(files, stacks, strict=True):
        if (len(stack), stack.shape[2:]) != (len(first), first.shape[2:]):
            raise DataError(
                f"{file} is {stack.shape}, {files[0]} {first.shape}: stacked as channels, they differ in these alone"
            )
    if len(stacks) == 1:
        return first
    channels = sum(stack.shape[1] for stack in stacks)
    dtype = first.dtype
    for stack in stacks[1:]:
        whole = dtype != stack.dtype and not (dtype.is_floating_point and stack.dtype.is_floating_point)
        dtype = torch.float64 if whole else torch.promote_types(dtype, stack.dtype)

    def read(which: Any) -> Tensor:
        index = which if isinstance(which, slice) else torch.from_numpy(which)
        return torch.cat([stack[index].to(dtype) for stack in stacks], 1)

    return Stack(read, len(first), (channels, *first.shape[2:]), dtype)


def _is_whole(values: Stack) -> bool:
    return not values.dtype.is_floating_point and not values.dtype.is_signed


@dataclass(frozen=True)
class _Scan:
    """All values, looked at once.

    Attributes:
        crc: of all.
        statistics: of those to train on.
        corrupt: numbers of samples with values that are not finite.
    """

    crc: int
    statistics: Statistics
    corrupt: Tensor

    @classmethod
    def of(cls, values: Stack, kept: Tensor, map: Any, name: str, skip: bool) -> "_Scan":
        """In one pass.

        Raises:
            DataError: samples are not finite, or no value of the map's, and are not to be left out.
        """
        trained = torch.zeros(len(values), dtype=torch.bool)
        trained[kept] = True
        function = None if map is None else MAPS[named(map)[0]](*named(map)[1])
        crc, first, lost = 0, 0, list[int]()
        moments = _Moments(values.shape[1])  # nothing small may outlive a part: it would pin the memory of large ones
        for part in parts_of(values):
            part = part.contiguous()
            crc = zlib.crc32(part.numpy().data, crc)
            mapped = part.double() if function is None else function(part.double())
            good = mapped.isfinite().flatten(1).all(1)
            lost += ((~good).nonzero().squeeze(1) + first).tolist()
            moments.add(mapped[good & trained[first : first + len(part)]].transpose(0, 1).flatten(1))
            first += len(part)
        if len(lost) and not skip:
            of = "" if map is None else f" after {map}"
            if map is not None and len(lost) > len(values) // 10:
                what = f"{counted(len(lost), 'sample')} have no value{of}, {_numbers(lost)}"
                raise DataError(f"{name}: {what}: choose an offset, such as log(0.1), or asinh()")
            raise DataError(
                f"{name}: {counted(len(lost), 'sample')} with values that are not finite{of}, {_numbers(lost)}: mend them, or "
                "leave them out with --skip_corrupt true"
            )
        if not moments.count:
            raise DataError(f"{name}: no sample has finite values")
        return cls(crc, moments.statistics(whole=not values.dtype.is_floating_point), torch.tensor(lost, dtype=torch.long))


class _Moments:
    """Mean and squares of each channel, part by part, by the pairwise rule of Chan et al. 1979; lowest and highest values."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(channels), np.zeros(channels)
        self.lowest, self.highest = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, values: Tensor) -> None:
        """Take in values (C, n), float64."""
        if not (count := values.shape[1]):
            return
        mean, whole = values.mean(1).numpy(), self.count + count
        apart = mean - self.mean
        with np.errstate(all="ignore"):  # what is too large is said by whoever asks for the spread
            self.squares += values.var(1, unbiased=False).numpy() * count + apart**2 * (self.count * count / whole)
        self.mean += apart * (count / whole)
        np.minimum(self.lowest, values.amin(1).numpy(), out=self.lowest)
        np.maximum(self.highest, values.amax(1).numpy(), out=self.highest)
        self.count = whole

    def statistics(self, *, whole: bool) -> Statistics:
        """Of all that was taken in."""
        with np.errstate(all="ignore"):
            deviation = np.sqrt(self.squares / self.count)
        mean, deviations, low, high = (tuple(x.tolist()) for x in (self.mean, deviation, self.lowest, self.highest))
        return Statistics(mean, deviations, low, high, whole)


def _numbers(index: list[int]) -> str:
    few = ", ".join(map(str, index[:5]))
    return f"number {few}" + (f" and {len(index) - 5:,} more" if len(index) > 5 else "")
