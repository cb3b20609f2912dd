"""How the batch of a step is shared out: over processes, over micro-batches, and at a resume on another number of them."""

from collections.abc import Iterator
from itertools import count

from accelerate import Accelerator
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from xhat.config.options import Options
from xhat.data.ahead import Request, Requests
from xhat.errors import RunError
from xhat.rng import Shard
from xhat.runs.checkpoint import Checkpoint


def rows_of(options: Options, processes: int) -> int:
    """Samples of a micro-batch on one process.

    Raises:
        RunError: the batch cannot be divided so.
    """
    parts = processes * options.accumulate
    if options.batch_size % parts:
        raise RunError(f"batch_size {options.batch_size} must be a multiple of processes · accumulate = {parts}")
    return options.batch_size // parts


def shard_of(options: Options, rows: int, accelerator: Accelerator, part: int) -> Shard:
    """Where a micro-batch of this process lies in the batch of all."""
    return Shard((part * accelerator.num_processes + accelerator.process_index) * rows, options.batch_size)


def requests_of(options: Options, rows: int, accelerator: Accelerator) -> Requests:
    """What this process will ask its source for from a step on: its part of each micro-batch."""

    def from_step(step: int) -> Iterator[Request]:
        for later in count(step):
            for part in range(options.accumulate):
                yield Request(later, shard_of(options, rows, accelerator, part), rows)

    return from_step


def shared_out_otherwise(checkpoint: Checkpoint, options: Options, processes: int, net: nn.Module) -> str:
    """What to say where a step's batch was computed in other parts than it will be.

    Raises:
        RunError: dropout draws its numbers part by part: the training would be another one.
    """
    before = checkpoint.state.get("shared_out", [processes, options.accumulate])
    if before == [processes, options.accumulate]:
        return ""
    there, here = (
        f"{n} process{'es' * (n > 1)} · accumulate {parts}" for n, parts in (before, (processes, options.accumulate))
    )
    if any(isinstance(part, _DropoutNd) and part.p for part in net.modules()):
        raise RunError(
            f"the network has dropout, whose numbers are drawn for each part of a batch: it was trained on {there}, and would "
            f"be trained otherwise on {here}: resume on the former, or train anew"
        )
    return f"trained on {there} so far, now on {here}: the same data, times and noise, but sums are rounded otherwise"
