"""The images, labels and label dropout of a step, as functions of (seed, step, sample)."""

import torch
from torch import Tensor

from xhat import rng as counted
from xhat.config.config import Config
from xhat.data.images import Images, Order, to_float
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Condition
from xhat.rng import Shard


class Batches:
    """Batches by number, gathered from memory.

    Args:
        config: batch size, seed and label dropout.
        data: the images.
        shape: whose `classes` says whether labels are used.
        device: where batches go; images travel as uint8.
    """

    def __init__(self, config: Config, data: Images, shape: DataShape, device: torch.device) -> None:
        self.data, self.shape, self.device = data, shape, device
        self.seed, self.dropout = config.seed, config.label_dropout
        self.order = Order(len(data), config.batch_size, config.seed)

    def get(self, step: int, shard: Shard, rows: int) -> tuple[Tensor, Condition | None]:
        """Images (rows, C, H, W) in [-1, 1] and {"label": (rows,)} for conditional networks, None for others."""
        index = self.order.indices(step, shard.first, rows)
        images = to_float(self.data.pixels[index].to(self.device, non_blocking=True))
        if self.shape.classes is None or self.data.labels is None:
            return images, None
        draw = torch.rand(shard.total, generator=counted.generator(self.seed, "labels", step))
        kept = draw[shard.first : shard.first + rows] >= self.dropout
        label = torch.where(kept, self.data.labels[index], self.shape.classes)  # index `classes` is the null class
        return images, {"label": label.to(self.device)}
