"""Per-image numbers of a whole step: from all micro-batches and all ranks, in the order of the samples."""

import torch
import torch.distributed as dist
from torch import Tensor

from xhat.rng import Shard


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def whole_batch(rows: int) -> Shard:
    """The share of this rank, if each has so many rows: all of them in one process."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return Shard(rank * rows, world_size() * rows)


class GlobalBatch:
    """Collects the parts of one step until all are there, so that what is learned from them is learned once, and equally."""

    def __init__(self) -> None:
        self._step, self._parts = -1, list[Tensor]()

    def collect(self, step: int, rows: Tensor, total: int) -> Tensor | None:
        """Take in the rows (k, B) of one part; (k, total) on all ranks once the last has come, else None.

        Args:
            step: the training step; parts of an earlier one are dropped.
            rows: k numbers for each of the part's images.
            total: images in the global batch.
        """
        if self._step != step:
            self._step, self._parts = step, []
        self._parts.append(rows)
        world = world_size()
        if world * sum(part.shape[1] for part in self._parts) < total:
            return None  # more micro-batches of this step follow; they see the same state
        if world > 1:
            self._parts = [_gathered(part, world) for part in self._parts]
        whole, self._parts = torch.cat(self._parts, dim=1), []
        return whole


def _gathered(part: Tensor, world: int) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, dim=1)
