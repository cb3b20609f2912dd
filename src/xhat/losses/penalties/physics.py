"""Residuals of partial differential equations on a grid, as penalties: the worked example of physics (Bastek et al. 2024).

An image is a field on a grid of square cells, its channels are the unknowns. The mean squared residual of x0_hat, weighted
by an inverse posterior variance that grows towards the data, is the virtual observation "the residual is 0" of Bastek et
al. 2024, Physics-informed diffusion models (arXiv 2403.14404). Only the equation in the interior is penalized; a boundary
condition is a penalty of its own, for example `masked_mean` of (u - u_boundary)² over the edge.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xhat.losses.penalties.base import Penalty
from xhat.losses.penalties.pixels import five_point
from xhat.tensors import image_mean

__all__ = ["as_is", "darcy", "darcy_residual", "poisson", "poisson_residual", "units_between"]

Units = Callable[[Tensor], Tensor]


def as_is(images: Tensor) -> Tensor:
    """The images are in physical units already."""
    return images


def units_between(low: float | Sequence[float], high: float | Sequence[float]) -> Units:
    """Physical units of images in [-1, 1]: -1 stands for `low`, 1 for `high`, linearly and beyond.

    Args:
        low: one number, or one for each channel.
        high: likewise, above `low`.

    Raises:
        ValueError: an empty range, or (at the call) other than one range or one per channel.
    """
    bottom, top = torch.broadcast_tensors(*(torch.atleast_1d(torch.as_tensor(x, dtype=torch.float64)) for x in (low, high)))
    if bottom.ndim != 1 or not bool((bottom < top).all()):
        raise ValueError(f"low must be below high in every channel, got low={low} and high={high}")
    scale, shift = ((top - bottom) / 2).reshape(-1, 1, 1), ((top + bottom) / 2).reshape(-1, 1, 1)

    def units(images: Tensor) -> Tensor:
        if len(scale) not in (1, images.shape[1]):  # broadcasting would add channels
            raise ValueError(f"{len(scale)} ranges for images of {images.shape[1]} channels: pass one, or one per channel")
        physical: Tensor = images * scale.to(images) + shift.to(images)
        return physical

    return units


def poisson_residual(u: Tensor, source: float | Tensor, spacing: float) -> Tensor:
    """-Laplacian(u) - source at the interior points, second order in the spacing.

    Args:
        u: (B, H, W).
        source: a number, or (H, W) on the same grid; its edge is not used.
        spacing: distance h of neighbouring points.

    Returns:
        (B, H - 2, W - 2), in the units of the source, u/h².

    Raises:
        ValueError: a grid without interior, or a source on another grid.
    """
    return -five_point(u) / spacing**2 - _interior(source, u)


def poisson(source: float | Tensor, spacing: float, units: Units = as_is) -> Penalty:
    """Mean squared residual of -Laplacian(u) = source, u being channel 0, in (units of the source)².

    Args:
        source: a number, or (H, W) on the same grid; its edge is not used.
        spacing: distance of neighbouring points, in the units of length that u and the source are in.
        units: images in [-1, 1] -> physical units, for example `units_between(0, 0.1)`.

    Raises:
        ValueError: a spacing that is not positive; at the call, as `poisson_residual`.
    """
    _require_spacing(spacing)

    def penalty(images: Tensor) -> Tensor:
        return image_mean(poisson_residual(units(images)[:, 0], source, spacing).square())

    return penalty


def darcy_residual(permeability: Tensor, pressure: Tensor, source: float | Tensor, spacing: float) -> Tensor:
    """-div(K grad p) - source at the interior points, in conservative form, second order in the spacing.

    The flux through the face between two points is K_half (p_next - p)/h, with K_half the mean of both K, and enters the
    balance of one cell as it leaves the other's: no mass is made at faces, unlike K Laplacian(p) + grad K · grad p.

    Args:
        permeability: K > 0, (B, H, W); positive is up to the caller, for example by units that end in exp.
        pressure: p, (B, H, W).
        source: a number, or (H, W) on the same grid; its edge is not used.
        spacing: distance h of neighbouring points.

    Returns:
        (B, H - 2, W - 2), in the units of the source, K p/h².

    Raises:
        ValueError: a grid without interior, or a source on another grid.
    """
    inner = _interior(source, pressure)

    def balance(K: Tensor, p: Tensor, dim: int) -> Tensor:
        """What flows in and stays, along one axis."""
        face = (K.narrow(dim, 0, K.shape[dim] - 1) + K.narrow(dim, 1, K.shape[dim] - 1)) / 2
        return (face * p.diff(dim=dim)).diff(dim=dim)

    vertical = balance(permeability[..., 1:-1], pressure[..., 1:-1], -2)
    horizontal = balance(permeability[..., 1:-1, :], pressure[..., 1:-1, :], -1)
    return -(vertical + horizontal) / spacing**2 - inner


def darcy(source: float | Tensor, spacing: float, units: Units = as_is) -> Penalty:
    """Mean squared residual of -div(K grad p) = source, K being channel 0 and p channel 1, in (units of the source)².

    The steady flow in a porous medium of Bastek et al. 2024, without their conditions on the boundary and the mean of p.

    Args:
        source: a number, or (H, W) on the same grid; its edge is not used.
        spacing: distance of neighbouring points.
        units: images in [-1, 1] -> physical units, for example `units_between((0.1, 0), (1, 2))`; K should come out positive.

    Raises:
        ValueError: a spacing that is not positive; at the call, fewer than two channels, or as `darcy_residual`.
    """
    _require_spacing(spacing)

    def penalty(images: Tensor) -> Tensor:
        if images.shape[1] < 2:
            raise ValueError(f"darcy reads permeability and pressure from two channels, got images of {images.shape[1]}")
        fields = units(images)
        return image_mean(darcy_residual(fields[:, 0], fields[:, 1], source, spacing).square())

    return penalty


def _interior(source: float | Tensor, field: Tensor) -> float | Tensor:
    """The source at the interior points of a field (B, H, W), on its device."""
    height, width = field.shape[-2:]
    if min(height, width) < 3:
        raise ValueError(f"a residual at interior points needs a grid of at least 3x3 points, got {height}x{width}")
    if not isinstance(source, Tensor) or source.ndim == 0:
        return float(source)
    if source.shape != (height, width):
        raise ValueError(f"a source of shape {tuple(source.shape)} for a field on ({height}, {width}): pass one value a point")
    return source[1:-1, 1:-1].to(field)


def _require_spacing(spacing: float) -> None:
    if not (spacing > 0 and math.isfinite(spacing)):
        raise ValueError(f"spacing is the distance of neighbouring points, above 0, got {spacing}")
