"""The average of the weights that is sampled from."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from xhat.diffusion.sharded import part
from xhat.runs.averages import power_exponent


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
        self.width = width
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
