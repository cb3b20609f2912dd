"""The real images that a model is measured on, and their labels as its network knows them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.data.images import Images, to_float
from xhat.data.load import load
from xhat.data.parts import in_channels, labels_for, load_parts
from xhat.data.shape import DataShape


@dataclass(frozen=True)
class Reference:
    """Real images beside a model.

    Attributes:
        images: of the size and the channels of the model's.
        labels: for the network, (N,), see `labels_for`; None if it takes none.
        held_out: whether the model was not trained on them.
    """

    images: Images
    labels: Tensor | None
    held_out: bool

    @classmethod
    def of(cls, images: Images, shape: DataShape, held_out: bool) -> "Reference":
        """The images as a model of data of this shape takes them.

        Raises:
            UsageError: images of other channels, or labels that the model has no class for.
        """
        fitted = in_channels(images, shape.channels)
        return cls(fitted, labels_for(fitted, shape), held_out)

    @property
    def conditional(self) -> bool:
        """Whether the network is told the images' own labels."""
        return self.labels is not None and self.images.labels is not None

    @property
    def kind(self) -> str:
        """What they are to the model, in a word."""
        return "held out" if self.held_out else "training images"

    def chosen(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Images number `index` as float (n, C, H, W) and their labels (n,), on a device."""
        labels = None if self.labels is None else self.labels[index].to(device)
        return to_float(self.images.pixels[index]).to(device), labels

    def first(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The first `count` of them, at most all, as `chosen`."""
        return self.chosen(torch.arange(min(count, len(self))), device)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class RealImages:
    """The real images that there are beside a model.

    Attributes:
        measured: what it is measured on.
        others: of the same data: those that it, or another model of these data, is trained on; None if there are no others.
    """

    measured: Reference
    others: Reference | None

    @property
    def distribution(self) -> Reference:
        """Enough images for a distance of distributions: of own data without a test set only a few are held out."""
        few = self.others is not None and not self.measured.images.is_test_set
        return self.others if few and self.others is not None else self.measured


def own_images(shape: DataShape, data: str, held_out: float) -> RealImages:
    """The data that a model was trained on: measured are those that it was not, if there are any.

    Args:
        shape: of the model's data.
        data: as for `load`.
        held_out: share that was kept from training, as for `load_parts`.

    Raises:
        DataError: the data cannot be read.
        UsageError: as for `Reference.of`.
    """
    parts = load_parts(data, shape.size, held_out)
    if parts.held_out is None:
        return RealImages(Reference.of(parts.train, shape, held_out=False), None)
    measured = Reference.of(parts.held_out, shape, held_out=True)
    return RealImages(measured, Reference.of(parts.train, shape, held_out=False))


def other_images(shape: DataShape, data: str) -> RealImages:
    """Data that a model was not trained on: measured are their test part, or all.

    Args:
        shape: of the model's data.
        data: as for `load`.

    Raises:
        DataError: the data cannot be read.
        UsageError: as for `Reference.of`.
    """
    images = load(data, shape.size, "test")
    measured = Reference.of(images, shape, held_out=True)
    return RealImages(measured, Reference.of(load(data, shape.size), shape, held_out=True) if images.is_test_set else None)
