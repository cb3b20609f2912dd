"""What is said of images: one line about those that a run is trained on, and what was noticed while reading them."""

from collections.abc import Sequence

import torch

from xhat.data.images import Images
from xhat.data.layers import layers
from xhat.data.scale import EIGHT_BITS
from xhat.data.shape import DataShape
from xhat.data.source import DataSource, length_of
from xhat.data.units import said
from xhat.data.wording import counted

SHOWN, NAME_LENGTH = 8, 24


def summary(images: Images, held_out: Images | None, labels: bool, wanted: bool = False) -> str:
    """Number, size, channels, range and classes of the images, and how many are held out.

    Args:
        images: to train on.
        held_out: to measure on: of the same data, or their test part.
        labels: whether the network is conditioned on the labels.
        wanted: whether it would be if there were any.
    """
    whole = [images] if held_out is None or held_out.found.part else [images, held_out]
    count, (channels, height, width) = sum(map(len, whole)), images.pixels.shape[1:]
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    resized = images.found.resized
    how = "" if not resized else ", resized" if resized == count else f", {resized:,} of them resized"
    part = f" ({images.name})" if images.found.part else ""
    said = [f"{counted(count, 'image')} {width}x{height} {colour}{how}{part}", _range(images), _classes(whole, labels, wanted)]
    held = "none" if held_out is None else f"{len(held_out):,} {'more' if held_out.found.part else 'of them'}"
    return f"data: {', '.join(said)}; {held} held out"


def summary_of_source(name: str, source: DataSource, held_out: DataSource | None, shape: DataShape) -> str:
    """Number and shape of a source's samples, what the network is told of them, and how many are held out."""
    length, aside = length_of(source), None if held_out is None else length_of(held_out)
    count = "samples" if length is None else counted(length, "sample")
    classes = [] if shape.classes is None else [f"the label, of {shape.classes:,} classes"]
    told = ", ".join([*classes, *shape.conditions]) or "nothing"
    reach = "unknown range" if shape.range is None else f"range {shape.range[0]:g} to {shape.range[1]:g}"
    reach = reach if shape.units is None else said(shape.units)
    held = "none" if held_out is None else "some" if aside is None else f"{aside:,}"
    return f"data: {name}, {count} of {shape.said()}, {reach}; the network is told {told}; {held} held out"


def notes_of(source: object) -> tuple[str, ...]:
    """What a source, or the one that it wraps, has noticed while it was opened, one line each."""
    return next((found for one in layers(source) if isinstance(found := getattr(one, "notes", None), tuple)), ())


def notices(images: Images) -> list[str]:
    """What to tell whoever uses the images, one line each: what was noticed while reading them, and values that were scaled."""
    low, high = images.found.scale
    scaled = [] if images.found.scale == EIGHT_BITS else [f"{images.name}: values from {low:g} to {high:g} become 0 to 255"]
    return [*images.found.notes, *scaled]


def _range(images: Images) -> str:
    lowest, highest = map(int, images.extremes)
    low, high = images.found.scale
    scaled = "" if (low, high) == EIGHT_BITS else f" (made of {low:g} to {high:g})"
    return f"pixel range {lowest} to {highest}{scaled}"


def _classes(whole: Sequence[Images], labels: bool, wanted: bool) -> str:
    known = [images.labels for images in whole if images.labels is not None]
    if not known:
        return f"no labels ({whole[0].found.unlabelled})" if wanted else "no labels"
    counts = torch.cat(known).bincount(minlength=whole[0].classes).tolist()
    told = f"{len(counts):,} class{'es' if len(counts) > 1 else ''} ({_listed(whole[0].class_names, counts)})"
    return told if labels else f"{told} that are not used (--labels true uses them)"


def _listed(names: Sequence[str], counts: Sequence[int]) -> str:
    """Names and numbers of images, or their range where the names are consecutive numbers; shortened when many."""
    if len(names) > 1 and names[0].isdecimal() and [str(int(names[0]) + k) for k in range(len(names))] == list(names):
        each = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        return f"{names[0]} to {names[-1]}, {each} images each"
    told = [f"{_short(name)} {count:,}" for name, count in zip(names, counts, strict=True)]
    return ", ".join(told if len(told) <= SHOWN else [*told[: SHOWN - 2], "...", told[-1]])


def _short(name: str) -> str:
    """A name on one line, whatever it holds."""
    line = "".join(c if c.isprintable() else " " for c in name)
    return line if len(line) <= NAME_LENGTH else f"{line[:NAME_LENGTH]}..."
