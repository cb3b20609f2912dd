"""Pictures of what is no picture: channels of fields and slices of volumes in colours, signals as lines."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, pad

MOST_CHANNELS, SIDE, GAP, DARK = 4, 48, 2, 32
"""Channels that are shown of a sample, the least side of a map in pixels, the white around it, the grey between channels."""
WIDTH, HEIGHT, FINE = 160, 80, 3
"""Of the picture of a signal, and how many times finer it is drawn."""
LINES = ((31, 95, 168), (196, 87, 46), (59, 138, 79), (122, 79, 163))


def pictures(samples: Tensor) -> Tensor:
    """uint8 images (N, 3, h, w) of samples (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Of fields each channel is a map, dark blue at its lowest and yellow at its highest value in all samples; of volumes each
    channel has its middle slice across each axis, below one another; of signals channels are lines in one frame.

    Raises:
        ValueError: they have other axes.
    """
    values = samples.detach().cpu().double()[:, :MOST_CHANNELS].nan_to_num()
    if values.ndim == 3:
        return _lines(values)
    if values.ndim == 5:
        middle = [side // 2 for side in values.shape[2:]]
        slices = [values[:, :, middle[0]], values[:, :, :, middle[1]], values[:, :, :, :, middle[2]]]
        return _below([_maps(part, _reach(values)) for part in slices])
    if values.ndim != 4:
        raise ValueError(f"samples {tuple(samples.shape[1:])} have no picture: signals, fields and volumes have")
    return _maps(values, _reach(values))


def _reach(values: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each channel, (C,)."""
    flat = values.transpose(0, 1).flatten(1)
    return flat.amin(1), flat.amax(1)


def _maps(values: Tensor, reach: tuple[Tensor, Tensor]) -> Tensor:
    """The channels of fields (N, C, H, W) side by side, in colours."""
    from matplotlib import colormaps  # only here: it takes as long to import as all the rest

    low, high = (x.reshape(-1, 1, 1) for x in reach)
    level = ((values - low) / (high - low).clamp(min=1e-300) * 255).round().clamp(0, 255).long()
    table = torch.from_numpy(np.round(colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8))
    coloured = table[level].movedim(-1, 2)  # (N, C, 3, H, W)
    zoom = max(1, -(-SIDE // coloured.shape[-2]))
    coloured = coloured.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    parts = [coloured[:, 0]]
    for channel in range(1, coloured.shape[1]):
        parts += [torch.full((*parts[0].shape[:3], 1), DARK, dtype=torch.uint8), coloured[:, channel]]
    return pad(torch.cat(parts, -1), (GAP,) * 4, value=255)


def _below(maps: list[Tensor]) -> Tensor:
    width = max(part.shape[-1] for part in maps)
    wide = [pad(part, (0, width - part.shape[-1]), value=255) for part in maps]
    return torch.cat(wide, -2)


def _lines(values: Tensor) -> Tensor:
    """Signals (N, C, L), all in one range."""
    low, high = float(values.amin()), float(values.amax())
    span, (count, _, length) = max(high - low, 1e-300), values.shape
    across = np.linspace(2, WIDTH - 3, length) * FINE
    down = (HEIGHT - 3 - (values - low) / span * (HEIGHT - 6)).numpy() * FINE
    found = torch.empty(count, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    for number, channels in enumerate(down):
        frame = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
        draw = ImageDraw.Draw(frame)
        for heights, colour in zip(channels, LINES, strict=False):
            draw.line(list(zip(across.tolist(), heights.tolist(), strict=True)), colour, FINE)
        drawn = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float()
        found[number] = interpolate(drawn, (HEIGHT, WIDTH), mode="area")[0].round().to(torch.uint8)
    return found
