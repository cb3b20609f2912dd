"""Conditions that are left out now and then, so that a network also learns to do without: classifier-free guidance."""

from collections.abc import Mapping

import torch
from torch import Tensor

from xhat import rng
from xhat.data.batch import Batch
from xhat.data.over import Over
from xhat.data.source import DataSource
from xhat.rng import Shard
from xhat.tensors import to_device


class WithNull(Over):
    """A source whose samples lose their conditions with some probability (Ho & Salimans 2022, algorithm 1).

    Which of them do is a function of (seed, step, sample).

    Args:
        source: of the samples.
        null: what stands for "not told", by the name of the condition: a number, or a tensor shaped like one row.
        share: of the samples that are not told.
        seed: of the choice.
    """

    def __init__(self, source: DataSource, null: Mapping[str, Tensor | float], share: float = 0.1, seed: int = 0) -> None:
        super().__init__(source)
        self.null, self.share, self.seed = dict(null), share, seed

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`."""
        batch = self.source.get(step, shard, rows)
        chance = torch.rand(shard.total, generator=rng.generator(self.seed, "labels", step))
        kept = chance[shard.first : shard.first + rows] >= self.share
        cond = {name: self._told(name, value, kept) for name, value in (batch.cond or {}).items()}
        return batch._replace(cond=cond or None)

    def _told(self, name: str, value: Tensor, kept: Tensor) -> Tensor:
        if name not in self.null:
            return value
        null = to_device(torch.as_tensor(self.null[name], dtype=value.dtype), value.device)
        return torch.where(to_device(kept, value.device).reshape(-1, *(1,) * (value.ndim - 1)), value, null)
