"""The average of the weights that is sampled from."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from xhat.diffusion.sharded import part
from xhat.errors import RunError


def power_exponent(width: float) -> float:
    """gamma of the power-function average whose weight profile has this relative standard deviation.

    width² = (gamma + 1) / ((gamma + 2)² (gamma + 3)) (Karras et al. 2024, EDM2, eq. 6 and appendix C).

    Raises:
        RunError: width is not in (0, 0.28], where a solution exists.
    """
    if not 0 < width <= 0.28:
        raise RunError(f"ema is the relative width of the average, 0 (off) or in (0, 0.28], got {width}")
    t = width**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_average(model: nn.Module, width: float) -> AveragedModel:
    """average_t = beta average_{t-1} + (1 - beta) weights_t, beta = (1 - 1/t)^(gamma + 1) (Karras et al. 2024, eq. 7).

    The averaging length is a fixed share of the training so far, whatever its length: no half-life to choose, no warm-up.

    Args:
        model: copied, and averaged by `update_parameters(model)`; frozen parameters are shared, not copied.
        width: standard deviation of the weight profile, as a share of the training; see `power_exponent`.
    """
    gamma = power_exponent(width)

    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor | int) -> None:
        parts = ((part(a), part(c)) for a, c in zip(averages, currents, strict=True))
        learn = [(a, c) for a, c in parts if a.data_ptr() != c.data_ptr()]
        if learn:
            own, new = ([*both] for both in zip(*learn, strict=True))
            torch._foreach_lerp_(own, new, 1 - (1 - 1 / (float(count) + 1)) ** (gamma + 1))

    average = AveragedModel(nn.Module(), multi_avg_fn=update)  # type: ignore[arg-type]
    average.module = copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})
    return average.requires_grad_(False)  # nothing trains it: DDP would wait for its gradients, an optimizer would decay it
