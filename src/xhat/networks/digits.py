"""The shipped MNIST network: features for FID and KID, and a reading of each digit with its confidence."""

from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor, nn

from xhat.registry import FEATURES

WEIGHTS = "mnist_features.safetensors"


class MNISTFeatures(nn.Module):
    """A convolutional classifier of 28x28 digits; its features are the 64 activations under the last linear map.

    Trained by `python -m xhat.evaluation.train_digits` on the MNIST training set. Input: images (B, 1, 28, 28) in [-1, 1].
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )

        self.stages = nn.Sequential(stage(1, 24), stage(24, 48))
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(48 * 49, self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64)."""
        features: Tensor = self.hidden(self.stages(images))
        return features

    def read(self, features: Tensor) -> Tensor:
        """Probability of each digit, (B, 10), from features (B, 64)."""
        probability: Tensor = self.head(features).softmax(-1)
        return probability

    @classmethod
    def trained(cls) -> "MNISTFeatures":
        """The shipped weights, in evaluation mode; laid out so that a CPU takes half as long."""
        network = cls()
        weights = load((files("xhat.networks") / WEIGHTS).read_bytes())
        network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
        last: MNISTFeatures = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return last.eval().requires_grad_(False)


@FEATURES.register
def mnist_features() -> MNISTFeatures:
    """Those of the shipped network, for grey images of 28x28."""
    return MNISTFeatures.trained()
