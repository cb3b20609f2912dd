"""The real images that a run is measured on, and their labels as the run's network knows them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xhat.commands.terminal import noted
from xhat.data.idx import Split
from xhat.data.images import Images, to_float
from xhat.data.load import load, load_parts
from xhat.data.shape import DataShape
from xhat.errors import UsageError
from xhat.runs.weights import TrainedRun


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
        UsageError: one image, images of other channels, or labels that the run has no class for.
    """
    shape = trained.shape
    if data is not None:
        images, held_out = load(data, shape.size, split), True
    else:
        training, aside = load_parts(trained.config.data, shape.size, trained.config.held_out)
        images, held_out = (training, False) if aside is None or split == "train" else (aside, True)
    if len(images) < 2:
        raise UsageError(f"{images.name} holds one image, which says nothing of a spread: name at least two with --data")
    images = replace(images, pixels=in_channels(images.pixels, shape.channels, images.name))
    conditional = shape.classes is not None and images.labels is not None
    null = None if shape.classes is None else torch.full((len(images),), shape.classes)
    labels = _renumbered(images, shape) if conditional else null
    if data is not None and split == "test":  # once
        noted(images)
    return Reference(images, labels, held_out, conditional)


def in_channels(pixels: Tensor, channels: int, name: str) -> Tensor:
    """Images (N, C, H, W) in a run's channels: grey ones as colour ones.

    Raises:
        UsageError: colours for a run without.
    """
    if pixels.shape[1] == 1:
        return pixels.expand(-1, channels, -1, -1).contiguous()
    if pixels.shape[1] != channels:
        raise UsageError(f"{name} has {pixels.shape[1]} channels, the run was trained on {channels}")
    return pixels


def _renumbered(images: Images, shape: DataShape) -> Tensor | None:
    """Labels as the run numbers its classes: other data may have fewer of them."""
    number = {name: k for k, name in enumerate(shape.class_names)}
    unknown = [name for name in images.class_names if name not in number]
    if unknown:
        few = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise UsageError(f"{images.name} has classes that the run does not know: {few}")
    places = torch.tensor([number[name] for name in images.class_names])
    return None if images.labels is None else places[images.labels]
