"""A training whose weights are split over its processes: those of the network; what else learns is small, and on each."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from xhat.config.options import Options
from xhat.diffusion.sharded import blocks_of, gather_in_calls, split, split_like
from xhat.errors import RunError
from xhat.objective.multipliers import FromGradients
from xhat.objective.objective import Objective

BLOCKS = "blocks"


def split_up(objective: Objective, averages: Sequence[AveragedModel], options: Options, device: torch.device) -> None:
    """Split the network of an objective, and of its averages, over all processes, in place, and move all of it to the device.

    Raises:
        RunError: it is to be gathered block by block, and has no blocks, or something needs all of it at once.
    """
    net = objective.denoiser.net
    own = {id(p) for p in net.parameters() if p.ndim}  # a scalar cannot be split
    blocks = gathered_alone(objective, options) if options.shard == BLOCKS else []
    names = {id(module): name for name, module in net.named_modules()}
    split(objective, [p for p in objective.parameters() if id(p) not in own], device, blocks)
    for average in averages:
        averaged = dict[int, nn.Parameter]()
        for name, p in net.named_parameters(remove_duplicate=False):
            place, _, last = f"net.{name}".rpartition(".")
            module = average.module.get_submodule(place)
            if id(p) not in averaged:  # what does not learn is shared with the network
                learns = nn.Parameter(split_like(getattr(module, last).data, p), requires_grad=False) if p.requires_grad else p
                averaged[id(p)] = learns
            module._parameters[last] = averaged[id(p)]
        average.module.to(device)
        for block in blocks:
            gather_in_calls(average.module.get_submodule(f"net.{names[id(block)]}"))


def gathered_alone(objective: Objective, options: Options) -> list[nn.Module]:
    """The blocks of an objective's network, to be gathered one by one.

    Raises:
        RunError: see `split_up`.
    """
    if options.compile == "on":
        raise RunError("a network that is gathered block by block is not compiled: take --compile off, or --shard true")
    term = next((name for name, m in objective.multipliers.items() if isinstance(m, FromGradients)), None)
    if term is not None:
        raise RunError(
            f'the weight of term "{term}" compares gradients of all weights, which no process has at once when they are '
            "gathered block by block: take --shard true, or another weight, such as a number or dual_ascent"
        )
    blocks = blocks_of(objective.denoiser.net)
    if not blocks:
        kind = type(objective.denoiser.net).__name__
        raise RunError(f"{kind} has no blocks in a list (nn.ModuleList, nn.Sequential) to gather one by one: take --shard true")
    return blocks


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
