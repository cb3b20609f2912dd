"""How good samples are, as a network of features sees them."""

from dataclasses import dataclass

from torch import Tensor, nn

from xhat.data.shape import DataShape
from xhat.data.stack import Samples
from xhat.distributed import ALONE, Shares
from xhat.errors import UsageError, first_line
from xhat.evaluation.fid import Distance, Reading, distance, features_of, read_digits
from xhat.networks.digits import MNISTFeatures


@dataclass(frozen=True)
class Quality:
    """Samples beside real images.

    Attributes:
        distance: FID and KID between them.
        reading: how digits are read in the samples; None if the network reads none.
        reading_real: the same of the real images.
    """

    distance: Distance
    reading: Reading | None
    reading_real: Reading | None


@dataclass(frozen=True)
class Features:
    """The features that distances are measured in.

    Attributes:
        network: of images (B, C, H, W) in [-1, 1].
        name: of the network.
    """

    network: nn.Module
    name: str

    @classmethod
    def shipped(cls, shape: DataShape) -> "Features | None":
        """Those of the digit network that the package ships, for the grey 28x28 images that it can read; else None."""
        readable = shape.sample == (1, 28, 28) and shape.is_eight_bit
        return cls(MNISTFeatures.trained(), "mnist") if readable else None

    def of(self, images: Samples, shares: Shares = ALONE) -> Tensor:
        """Features (N, D) of uint8 images (N, C, H, W); of several processes each takes some.

        Raises:
            UsageError: the network cannot take them.
        """
        try:
            return features_of(self.network, images, shares)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            line, shape = first_line(error), tuple(images.shape[1:])
            raise UsageError(f"the features {self.name} cannot be taken of images {shape}: {line}") from None

    def compare(self, samples: Tensor, real: Tensor) -> Quality:
        """How far samples are from real images, given the features of both, (N, D) and (M, D)."""
        far = distance(samples, real, self.name)
        if not isinstance(self.network, MNISTFeatures):
            return Quality(far, None, None)
        return Quality(far, read_digits(self.network.read(samples)), read_digits(self.network.read(real)))
