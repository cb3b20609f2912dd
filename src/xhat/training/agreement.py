"""What all processes agree on at each step; on a GPU it is known a step later, so that nobody waits for it."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from xhat import tensors


@dataclass(frozen=True)
class Agreed:
    """Of a step, the same on all processes.

    Attributes:
        finite: whether loss and gradient were, on all of them.
        asked: the number of the signal that asked one of them to stop; 0 if none did.
        seconds: the longest time that one of them has trained.
    """

    finite: bool
    asked: int
    seconds: float


class Agreement:
    """Collects the votes of steps: on a CPU each is read at once, on a GPU when the next is there.

    Args:
        accelerator: of the training.
        lags: whether votes are read a step later; then whoever updates the weights must do nothing where a step was not finite.
    """

    def __init__(self, accelerator: Accelerator, *, lags: bool) -> None:
        self.accelerator, self.lags = accelerator, lags
        self._open: list[tuple[Tensor, torch.Event | None]] = []

    def vote(self, bad: Tensor, asked: int, seconds: float) -> None:
        """Take in a step: whether it is not finite here, (), and what is known at once. All processes do."""
        known = tensors.to_device(torch.tensor([asked, seconds], dtype=torch.float64), bad.device)
        votes = torch.cat([bad.reshape(1).double(), known])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        self._open.append(on_the_way(votes) if self.lags else (votes, None))

    def reached(self, *, wait: bool) -> list[Agreed]:
        """Of the steps that nobody has asked for yet, in their order; without `wait` a GPU's last one is left for later."""
        count = len(self._open) - (1 if self.lags and not wait else 0)
        ready, self._open = self._open[:count], self._open[count:]
        return [read(*votes) for votes in ready]


def on_the_way(votes: Tensor) -> tuple[Tensor, torch.Event]:
    """A copy of votes on its way to the host, and what says that it has arrived."""
    held = torch.empty(votes.shape, dtype=votes.dtype, pin_memory=True)
    held.copy_(votes, non_blocking=True)
    arrived = torch.Event(votes.device)
    arrived.record()
    return held, arrived


def read(votes: Tensor, arrived: torch.Event | None) -> Agreed:
    """What votes say, once they are there."""
    if arrived is not None:
        arrived.synchronize()
    bad, asked, seconds = votes.tolist()
    return Agreed(not bad, int(asked), seconds)
