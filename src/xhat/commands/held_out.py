"""The real images that a run is measured on, and their labels as the run's network knows them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.commands.parsing import UsageError
from xhat.data.idx import Split
from xhat.data.images import Images, set_aside, to_float
from xhat.data.load import load as load_data
from xhat.runs import TrainedRun


@dataclass(frozen=True)
class Reference:
    """Real images beside a run.

    Attributes:
        images: of the size and the channels of the run's.
        labels: for the network, (N,): the images' own, or the null class where they have none; None if it takes none.
        held_out: whether the run was not trained on them.
        conditional: whether the network is told the images' own labels.
    """

    images: Images
    labels: Tensor | None
    held_out: bool
    conditional: bool

    def __len__(self) -> int:
        return len(self.images)

    def chosen(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Images number `index` as float (n, C, H, W) and their labels (n,), on a device."""
        labels = None if self.labels is None else self.labels[index].to(device)
        return to_float(self.images.pixels[index]).to(device), labels


def reference(trained: TrainedRun, data: str | None, split: Split = "test") -> Reference:
    """The images that `data` names, by default those of the run's own data that it was not trained on, if there are any.

    Raises:
        UsageError: images of other channels, or labels that the run has no class for.
    """
    source, shape = data or trained.config.data, trained.shape
    held_out = data is not None or source == "mnist"
    images = load_data(source, shape.size, split)
    if not held_out:
        training, aside = set_aside(images, trained.config.held_out)
        images, held_out = (training, False) if aside is None or split == "train" else (aside, True)
    if images.pixels.shape[1] != shape.channels:
        raise UsageError(f"{images.name} has {images.pixels.shape[1]} channels, the run was trained on {shape.channels}")
    if shape.classes is not None and images.classes > shape.classes:
        raise UsageError(f"{images.name} has labels up to {images.classes - 1}, the run knows 0 to {shape.classes - 1}")
    conditional = shape.classes is not None and images.labels is not None
    null = None if shape.classes is None else torch.full((len(images),), shape.classes)
    return Reference(images, images.labels if conditional else null, held_out, conditional)
