"""The average of the weights that is sampled from."""

import copy

import numpy as np
import torch
from torch import nn
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


class PowerAverage(AveragedModel):
    """average_t = beta average_{t-1} + (1 - beta) weights_t, beta = (1 - 1/t)^(gamma + 1) (Karras et al. 2024, eq. 7).

    The averaging length is a fixed share of the training so far, whatever its length: no half-life to choose, no warm-up.
    `AveragedModel` itself would copy the number of updates to a GPU, and wait for it there, at each of them.

    Args:
        model: copied, and averaged by `update_parameters(model)`; frozen parameters are shared, not copied.
        width: standard deviation of the weight profile, as a share of the training; see `power_exponent`.
    """

    def __init__(self, model: nn.Module, width: float) -> None:
        super().__init__(nn.Module())
        self.gamma = power_exponent(width)
        self.module = copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})
        self.requires_grad_(False)  # nothing trains it: DDP would wait for its gradients, an optimizer would decay it

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights as they are now."""
        count = int(self.n_averaged)  # on the CPU
        both = zip(self.module.parameters(), model.parameters(), strict=True)
        learn = [(part(a.detach()), part(c.detach())) for a, c in both if a is not c]
        if learn:
            averages, weights = ([*side] for side in zip(*learn, strict=True))
            torch._foreach_lerp_(averages, weights, 1 - (1 - 1 / (count + 1)) ** (self.gamma + 1))
        for own, new in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(new)  # statistics are those of now
        self.n_averaged += 1
