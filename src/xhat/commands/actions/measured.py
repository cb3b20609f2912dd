"""What was measured of the samples that a command draws, from a file."""

from pathlib import Path

import torch
from torch import Tensor

from xhat.data.arrays import opened
from xhat.data.images import to_float
from xhat.data.shape import DataShape
from xhat.errors import UsageError

ARRAYS = ("images", "samples")
"""What an .npz of samples calls them."""


def read_measured(file: str, shape: DataShape) -> Tensor:
    """Measurements (N, ...) in the network's own numbers: 8-bit images N x H x W (x C), or floats as the data have them.

    Args:
        file: an .npz, as `xhat sample` writes it, or an .npy.
        shape: of the run's data.

    Raises:
        UsageError: there is no such file, or nothing of that kind in it.
        DataError: it is damaged.
    """
    path = Path(file)
    if not path.is_file() or path.suffix not in (".npz", ".npy"):
        raise UsageError(f"--measured {path}: name a file .npz, as xhat sample writes it, or .npy")
    found = opened(path)
    name = next((name for name in ARRAYS if name in found), None)
    if name is None:
        raise UsageError(f"--measured {path}: holds {', '.join(found) or 'nothing'}; name an array in it images or samples")
    values = torch.as_tensor(found[name].copy())
    if not len(values):
        raise UsageError(f"--measured {path}: holds no measurement")
    if values.dtype == torch.uint8:
        values = values[..., None] if values.ndim == 3 else values
        if values.ndim != 4 or values.shape[-1] != shape.channels:
            raise UsageError(
                f"--measured {path}: 8-bit images are N x H x W x {shape.channels}, this array is {tuple(found[name].shape)}"
            )
        return to_float(values.movedim(-1, 1))
    if not values.is_floating_point() or values.ndim < 2:
        raise UsageError(f"--measured {path}: measurements are 8-bit images or floats, N x ..., this array is {values.dtype}")
    return (values if shape.units is None else shape.units.normalised(values)).float()
