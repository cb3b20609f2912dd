"""The real images that a model is measured on, and their labels as its network knows them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.data.images import Images, to_float
from xhat.data.parts import Parts, in_channels, labels_for
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Condition
from xhat.errors import UsageError


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
        if tuple(fitted.pixels.shape[1:]) != shape.sample:
            found = tuple(fitted.pixels.shape[1:])
            raise UsageError(f"{images.name} has samples {found}, the run was trained on {shape.sample}")
        return cls(fitted, labels_for(fitted, shape), held_out)

    @property
    def conditional(self) -> bool:
        """Whether the network is told the images' own labels."""
        return self.labels is not None and self.images.labels is not None

    @property
    def kind(self) -> str:
        """What they are to the model, in a word."""
        return "held out" if self.held_out else "training images"

    def chosen(self, index: Tensor, device: torch.device) -> tuple[Tensor, Condition | None]:
        """Images number `index` as float (n, C, H, W), and what the network is told of them, on a device."""
        return to_float(self.images.pixels[index]).to(device), self._told(index, device)

    def told(self, count: int, device: torch.device) -> Condition | None:
        """What the network is told of the first `count` of them, at most all."""
        return self._told(torch.arange(min(count, len(self))), device)

    def _told(self, index: Tensor, device: torch.device) -> Condition | None:
        labels = {} if self.labels is None else {"label": self.labels}
        cond = {name: value[index].to(device) for name, value in {**self.images.cond, **labels}.items()}
        return cond or None

    def first(self, count: int, device: torch.device) -> tuple[Tensor, Condition | None]:
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


def own_images(shape: DataShape, parts: Parts) -> RealImages:
    """The data that a model was trained on: measured are those that it was not, if there are any.

    Args:
        shape: of the model's data.
        parts: of its data.

    Raises:
        UsageError: as for `Reference.of`.
    """
    if parts.held_out is None:
        return RealImages(Reference.of(parts.train, shape, held_out=False), None)
    measured = Reference.of(parts.held_out, shape, held_out=True)
    return RealImages(measured, Reference.of(parts.train, shape, held_out=False))


def other_images(shape: DataShape, parts: Parts) -> RealImages:
    """Data that a model was not trained on: measured are their test part, or all.

    Args:
        shape: of the model's data.
        parts: all of them to train on, or with a test part.

    Raises:
        UsageError: as for `Reference.of`.
    """
    if parts.held_out is None:
        return RealImages(Reference.of(parts.train, shape, held_out=True), None)
    measured = Reference.of(parts.held_out, shape, held_out=True)
    return RealImages(measured, Reference.of(parts.train, shape, held_out=True))
