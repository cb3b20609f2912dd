"""How good samples are: distances to a data set in the features of a network, digits read."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xhat.data.images import to_float
from xhat.data.stack import Samples
from xhat.distributed import ALONE, Shares
from xhat.evaluation.neighbours import precision_and_recall

CONFIDENT, KID_SUBSET, KID_SUBSETS, BATCH = 0.9, 500, 50, 500


@dataclass(frozen=True)
class Distance:
    """Distances between two sets of images.

    Attributes:
        fid: Fréchet distance of Gaussians fitted to the features (Heusel et al. 2017, eq. 6); biased upwards in few samples.
        kid: unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018), mean over subsets.
        kid_sd: its standard deviation over the subsets.
        precision: share of samples near a real image, see `precision_and_recall`.
        recall: share of real images near a sample; None of both in fewer than four.
        samples: number of generated images.
        reference: number of real images.
        features: the network that the distances are measured in.
    """

    fid: float
    kid: float
    kid_sd: float
    precision: float | None
    recall: float | None
    samples: int
    reference: int
    features: str


class Given(nn.Module):
    """Passes features on: torchmetrics computes the distances, the features are made once, here."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def features_of(network: nn.Module, images: Samples, shares: Shares = ALONE) -> Tensor:
    """Features (N, D) of uint8 images (N, C, H, W), for a network of images (B, C, H, W) in [-1, 1].

    Args:
        network: of features.
        images: that they are of.
        shares: of several processes, who takes which images.
    """
    batch = shares.part(len(images), BATCH)

    def features(first: int) -> Tensor:
        found: Tensor = network(to_float(images[first : first + batch]))
        return found.flatten(1)

    return torch.cat(list(shares.map(features, range(0, len(images), batch))))


def distance(samples: Tensor, reference: Tensor, name: str) -> Distance:
    """FID, KID, precision and recall between features (N, D) and (M, D).

    Args:
        samples: of the generated images, see `features_of`.
        reference: of the real ones.
        name: of the network that made them.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    fake, real = samples.double(), reference.double()
    given = Given(fake.shape[1])
    fid = FrechetInceptionDistance(feature=given).set_dtype(torch.float64)
    subset = min(KID_SUBSET, len(fake), len(real))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all extracted features")
        kid = KernelInceptionDistance(feature=given, subsets=KID_SUBSETS, subset_size=subset).set_dtype(torch.float64)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the subsets
        mean, sd = kid.compute()
    precision, recall = precision_and_recall(fake, real) or (None, None)
    own = float(fid.compute()), float(mean), float(sd)
    return Distance(*own, precision, recall, len(fake), len(real), name)


@dataclass(frozen=True)
class Reading:
    """How the shipped classifier reads digits.

    Attributes:
        confident: share of images read as some digit with probability >= 0.9.
        digits: number of images read as each digit, 0..9.
    """

    confident: float
    digits: list[int]


def read_digits(probability: Tensor) -> Reading:
    """Reading of digit probabilities (N, 10), see `MNISTFeatures.read`."""
    sure, digit = probability.max(1)
    return Reading(float((sure >= CONFIDENT).double().mean()), torch.bincount(digit, minlength=10).tolist())
