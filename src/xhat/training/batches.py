"""The images, labels and label dropout of a step, as functions of (seed, step, sample)."""

import torch
from torch import Tensor

from xhat import rng
from xhat.data.images import Images, Order, to_float
from xhat.diffusion.denoiser import Condition
from xhat.rng import Shard


class Batches:
    """Batches by number, gathered from memory.

    Args:
        data: the images.
        classes: number of classes that the network is told; None for one that takes no labels.
        device: where batches go; images travel as uint8.
        size: samples per step, over all processes and micro-batches.
        seed: of the order, and of label dropout.
        label_dropout: share of samples that are given the null class, number `classes`.
    """

    def __init__(
        self, data: Images, classes: int | None, device: torch.device, size: int, seed: int, label_dropout: float = 0.0
    ) -> None:
        self.data, self.classes, self.device = data, classes, device
        self.size, self.seed, self.dropout = size, seed, label_dropout
        self.order = Order(len(data), size, seed)

    def get(self, step: int, shard: Shard, rows: int) -> tuple[Tensor, Condition | None]:
        """Images (rows, C, H, W) in [-1, 1] and {"label": (rows,)} for conditional networks, None for others."""
        index = self.order.indices(step, shard.first, rows)
        images = to_float(self.data.pixels[index].to(self.device, non_blocking=True))
        if self.classes is None or self.data.labels is None:
            return images, None
        chance = torch.rand(shard.total, generator=rng.generator(self.seed, "labels", step))
        kept = chance[shard.first : shard.first + rows] >= self.dropout
        label = torch.where(kept, self.data.labels[index], self.classes)
        return images, {"label": label.to(self.device)}

    def fingerprint(self) -> str:
        """The same for the same images and, where the network is told them, labels: a run is resumed with no others."""
        images = self.data.fingerprint()
        return images if self.classes is None else f"{images} {self.data.labels_fingerprint()}"
