"""A training whose weights are split over its processes: those of the network; what else learns is small, and on each."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from xhat.diffusion.sharded import split, split_like
from xhat.objective.objective import Objective


def split_up(objective: Objective, average: AveragedModel | None) -> None:
    """Split the network of an objective, and of its average, over all processes, in place."""
    net = objective.denoiser.net
    own = {id(p) for p in net.parameters() if p.ndim}  # a scalar cannot be split
    split(objective, [p for p in objective.parameters() if id(p) not in own])
    if average is None:
        return
    for name, p in net.named_parameters():
        place, _, last = f"net.{name}".rpartition(".")
        module = average.module.get_submodule(place)
        module._parameters[last] = nn.Parameter(split_like(getattr(module, last).data, p), requires_grad=False)


def apart_from_the_network(objective: Objective) -> list[nn.Parameter]:
    """What learns and is whole on every process: of losses and schedules, and scalars."""
    own = {id(p) for p in objective.denoiser.net.parameters() if p.ndim}
    return [p for p in objective.parameters() if p.requires_grad and id(p) not in own]


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean gradient over all processes."""
    for p in parameters:
        if p.grad is not None:
            torch.distributed.all_reduce(p.grad)
            p.grad /= torch.distributed.get_world_size()
