"""A look at an objective: how much each noise level counts, and how often it is drawn."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.times import TimeSampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST, POINTS = 10.0, 161


@torch.no_grad()
def plot(schedule: Schedule, times: TimeSampler, effective: Callable[[Tensor], Tensor]) -> "Figure":
    """Two panels over logsnr: the weighting relative to the bound, largest = 1; and the density of the samples.

    Args:
        schedule: whose noise levels are shown, within ±10.
        times: how they are drawn.
        effective: logsnr (N,) -> weighting (N,), see `Objective.effective_weighting`.
    """
    from matplotlib.figure import Figure

    inner = torch.tensor([max(schedule.t_min, 1e-6), 1 - 1e-6], dtype=torch.float64, device=schedule.device)
    high, low = schedule.logsnr(inner).clamp(-MOST, MOST).tolist()
    logsnr = torch.linspace(high, low, POINTS, dtype=torch.float64, device=schedule.device)
    t, weight = schedule.t_of(logsnr), effective(logsnr).cpu()
    density = times.relative_density(schedule, t) / (1 - schedule.t_min) / -schedule.dlogsnr(t)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    top = weight.max().clamp(min=torch.finfo(weight.dtype).tiny)
    panels = (("effective weighting, largest = 1", weight / top), ("samples per unit logsnr", density.cpu()))
    for axis, (title, values) in zip(figure.subplots(1, 2), panels, strict=True):
        axis.plot(logsnr.cpu(), values, color="#1f5fa8", linewidth=1.8)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("logsnr (noise on the left, data on the right)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
