"""Pictures: grids of samples, curves of losses and weightings."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import interpolate

from xhat.analysis.gradients import GradientProfile
from xhat.bound.estimate import Curve
from xhat.data.images import to_uint8
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.distributed import ALONE, Shares
from xhat.evaluation.field_pictures import pictures
from xhat.files.ours import SOFTWARE, write_ours
from xhat.tensors import device_of

BLUE, GREY = "#1f5fa8", "#8a8f98"
HELD_OUT = "eval/bits_per_dim"
FEW_DECADES = 1e4
DECODED = 4
"""Latents that are decoded at a time."""
_TITLES = {"loss": "loss (weighted sum of all terms)", HELD_OUT: "held-out images: bits/dim within the noise levels measured"}
COLORS = (BLUE, "#c4572e", "#3b8a4f", "#7a4fa3")


def save_grid(images: Tensor, path: Path, columns: int, zoom: int | None = None, *, force: bool = False) -> None:
    """A PNG of `grid`; see `write_ours`."""
    own, buffer = PngInfo(), BytesIO()
    for key, value in SOFTWARE.items():
        own.add_text(key, value)
    grid(images, columns, zoom).save(buffer, "PNG", pnginfo=own)
    write_ours(path, buffer.getvalue(), force=force)


def grid(images: Tensor, columns: int = 8, zoom: int | None = None) -> Image.Image:
    """Images in rows as one picture, enlarged by whole pixels until a small image is easy to see; a notebook shows it.

    Args:
        images: (N, C, H, W) with 1 or 3 channels, uint8 or floats in [-1, 1].
        columns: images per row.
        zoom: pixels per image pixel; by default such that an image is 56 pixels or more.

    Raises:
        ValueError: no pictures.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"a grid is made of images (N, 1 or 3, H, W), got {tuple(images.shape)}")
    images = images.cpu() if images.dtype == torch.uint8 else to_uint8(images).cpu()
    n, channels, height, width = images.shape
    zoom = zoom or max(1, -(-56 // height))
    rows, gap = -(-n // columns), 1
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 96, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[y : y + height, x : x + width] = image
    picture = Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


@torch.no_grad()
def shown(samples: Tensor, shape: DataShape, denoiser: Denoiser, shares: Shares = ALONE) -> Tensor:
    """uint8 images of samples: latents are decoded, a few at a time, of several processes by each some; else as `drawn`."""
    decode, device = denoiser.decode, device_of(denoiser.net)
    if decode is None:
        return drawn(samples, shape)
    parts = samples.split(shares.part(len(samples), DECODED))
    return torch.cat(list(shares.map(lambda part: to_uint8(decode(part.to(device))).cpu(), parts)))


def thumbnails(images: Tensor, side: int = 128) -> Tensor:
    """uint8 images whose longer side is at most `side`, each pixel a mean: forty large ones are more than a page can hold."""
    height, width = images.shape[2:]
    if (longer := max(height, width)) <= side:
        return images
    size = [max(1, round(length * side / longer)) for length in (height, width)]
    return interpolate(images.float(), size, mode="area").round().to(torch.uint8)


def is_shown(shape: DataShape, denoiser: Denoiser) -> bool:
    """Whether its samples can be shown as pictures."""
    return shape.is_picture or denoiser.decode is not None or 2 <= len(shape.sample) <= 4


def drawn(samples: Tensor, shape: DataShape) -> Tensor:
    """uint8 images of samples: those that are no pixels from their lowest value to their highest, fields as `pictures`."""
    if samples.dtype == torch.uint8:
        return samples
    if not shape.is_picture:
        return pictures(samples)
    low, high = shape.range or tuple(float(v) for v in samples.aminmax())
    return to_uint8((samples - low) * (2 / max(high - low, 1e-12)) - 1)


def grid_columns(classes: int | None) -> int:
    """Images per row: one column per class where that makes a row of fair length."""
    return classes if classes is not None and 5 <= classes <= 16 else 8


def save_losses(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG of every term against the step, smoothed line over the raw one; and of the common scale. None without rows.

    Args:
        rows: of a run's metrics: "step", "loss", "terms" (name -> mean), and held-out bits/dim where they were measured.
        path: the PNG.
    """
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row["terms"]))
    names = ["loss", *names] if len(names) > 1 else names
    names += [HELD_OUT] if sum(HELD_OUT in row for row in rows) > 1 else []
    figure = new_figure(7, 2.6 * len(names) + 0.4)
    for axis, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        points = [(r["step"], r.get(name) if name in ("loss", HELD_OUT) else r["terms"].get(name)) for r in rows]
        steps, values = zip(*[(s, v) for s, v in points if v is not None], strict=True) if points else ((), ())
        axis.plot(steps, values, color=GREY, alpha=0.5, linewidth=0.8)
        axis.plot(steps, values if name == HELD_OUT else _smoothed(values), color=BLUE, linewidth=1.8)
        axis.set_title(_TITLES.get(name, f"term: {name}"), loc="left", fontsize=10)
        if min(values) > 0 and name != HELD_OUT:
            axis.set_yscale("log")
            _plain_log(axis)
        tidy(axis)
        axis.set_xlabel("training step")
    save_figure(figure, path)


def save_curves(
    path: Path, x: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, *, force: bool = False
) -> None:
    """A PNG of curves over a common axis; logarithmic if all values are positive and span more than a factor of 20."""
    figure = new_figure(7, 4)
    axis = figure.subplots()
    for i, (name, values) in enumerate(curves.items()):
        axis.plot(x, values, linewidth=1.8, label=name, color=COLORS[i % 4])
    everything = [v for values in curves.values() for v in values if math.isfinite(v)]
    if everything and min(everything) > 0 and max(everything) > 20 * min(everything):
        axis.set_yscale("log")
    if len(curves) > 1:
        axis.legend(frameon=False)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    tidy(axis)
    save_figure(figure, path, force=force)


def save_bound(path: Path, curve: Curve, title: str) -> None:
    """A PNG of where a bound's bits are: per step, and per unit logsnr, where areas are bits."""
    width = [last - first + 1 for first, last in zip(curve.first, curve.last, strict=True)]
    figure = new_figure(9, 3.8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    steps, levels = figure.subplots(1, 2)
    middle = [(a + b) / 2 for a, b in zip(curve.first, curve.last, strict=True)]
    each = [b / w for b, w in zip(curve.bits_per_dim, width, strict=True)]
    seen = max(each) * 1e-5  # below, an estimate is noise around 0, which a logarithm would blow up
    if seen > 0:
        each = [b if b > seen else math.nan for b in each]
        steps.set_yscale("log")
    steps.plot(middle, each, color=BLUE, linewidth=1.8, marker="o", markersize=2.5)
    steps.set_xscale("log")
    steps.set_xlabel("step (data on the left, noise on the right)")
    steps.set_ylabel("bits/dim per step")
    known = [(x, b / w, w) for x, b, w in zip(curve.logsnr, curve.bits_per_dim, curve.logsnr_width, strict=True) if w > 1e-6]
    levels.bar([k[0] for k in known], [k[1] for k in known], width=[k[2] for k in known], color=BLUE, alpha=0.75, linewidth=0)
    levels.set_xlabel("logsnr (noise on the left, data on the right)")
    levels.set_ylabel("bits/dim per unit logsnr")
    for axis in (steps, levels):
        tidy(axis)
    save_figure(figure, path)


def save_gradients(path: Path, profile: GradientProfile, *, force: bool = False) -> None:
    """A PNG of gradient norms and cosines over noise levels, and of gradients along chains."""
    cosines = {name: t.cosine for name, t in profile.terms.items() if not all(map(math.isnan, t.cosine))}
    panels = [
        ("‖d term / d parameters‖", profile.logsnr, {name: t.norm for name, t in profile.terms.items()}),
        *([("cosine to the base's gradient", profile.logsnr, cosines)] if cosines else []),
        *[(f"{name}: ‖d penalty / d z‖ along a chain", c.t, {name: c.norm}) for name, c in profile.chains.items()],
    ]
    figure = new_figure(4.3 * len(panels), 3.8)
    for axis, (title, x, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for color, (name, y) in zip(cycle(COLORS), curves.items(), strict=False):
            axis.plot(x, [v or math.nan for v in y], color=color, marker="o", markersize=3, label=name)
        axis.set_title(title, loc="left", fontsize=10)
        tidy(axis)
        if curves is cosines:
            axis.axhline(0, color=GREY, linewidth=0.8)
            axis.set_ylim(-1.05, 1.05)
        else:
            axis.set_yscale("log")
            _plain_log(axis)
        if x is profile.logsnr:
            axis.set_xlabel("logsnr (noise on the left, data on the right)")
        else:
            axis.set_xlabel("t of z (noise on the left, data on the right)")
            axis.invert_xaxis()
        if len(curves) > 1:
            axis.legend(frameon=False, fontsize=9)
    save_figure(figure, path, force=force)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # only here: it takes as long to import as all the rest

    return Figure(figsize=(width, height), layout="constrained")


def _plain_log(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers, three to a decade where there are few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < FEW_DECADES * low else (1,)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    width = max(1, round(share * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = ends - np.minimum(width, ends // 4 + 1)  # a short window where the curve is steep
    return [float(v) for v in (sums[ends] - sums[starts]) / (ends - starts)]


def tidy(axis: Any) -> None:
    """Two axes, and a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def save_figure(figure: Any, path: Path, *, force: bool = False) -> None:
    """A PNG; see `write_ours`."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=130, metadata=SOFTWARE)
    write_ours(path, buffer.getvalue(), force=force)
