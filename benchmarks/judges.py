"""Two networks that read digits, of other kinds than the package's, to judge what was trained to please that one.

As parts of a config, `--use benchmarks/judges.py` names two penalties: `unreadable_to_patches` and `unreadable_to_depthwise`,
-log of the largest probability of a digit, as `unreadable_digit`. Each judge is trained when it is first asked, which takes
minutes, and kept in runs/judges.
"""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import xhat
from xhat.data.images import to_float
from xhat.data.load import load

EPOCHS, BATCH, KEPT = 4, 128, Path("runs/judges")


class Judge(nn.Module):
    """A network of images (B, 1, 28, 28) in [-1, 1] that gives features, and a head that reads digits from them."""

    head: nn.Linear


class Patches(Judge):
    """A small transformer over patches of 7 x 7 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, 64, 7, stride=7), nn.Parameter(0.02 * torch.randn(16, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64)."""
        found: Tensor = self.body(self.patch(images).flatten(2).transpose(1, 2) + self.place).mean(1)
        return found


class Depthwise(Judge):
    """Blocks of a convolution for each channel and an MLP over the channels, on maps of 14 x 14."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 48, 4, stride=2, padding=1), nn.Linear(48, 10)
        self.spatial = nn.ModuleList(nn.Conv2d(48, 48, 5, padding=2, groups=48) for _ in range(4))
        self.channel = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, 48), nn.Conv2d(48, 96, 1), nn.GELU(), nn.Conv2d(96, 48, 1)) for _ in range(4)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 48)."""
        x = self.first(images)
        for spatial, channel in zip(self.spatial, self.channel, strict=True):
            x = x + channel(spatial(x))
        return F.gelu(x).mean((2, 3))


JUDGES: dict[str, type[Judge]] = {"patches": Patches, "depthwise": Depthwise}


def judge(name: str, folder: Path) -> Judge:
    """A judge: trained once, and kept."""
    path = folder / f"{name}.safetensors"
    torch.manual_seed(len(name))
    network = JUDGES[name]()
    if path.exists():
        network.load_state_dict(load_file(path))
    else:
        learn_to_read(network)
        save_file(network.state_dict(), path)
    return network.eval().requires_grad_(False)


@torch.enable_grad()  # also for who judges without gradients
def learn_to_read(network: Judge) -> None:
    """MNIST's training images."""
    data = load("mnist")
    images, labels = to_float(data.pixels[:]), torch.as_tensor(data.labels)
    steps = EPOCHS * len(images) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        shift = torch.randint(-2, 3, (2,)).tolist()
        F.cross_entropy(network.head(network(images[rows].roll(shift, (2, 3)))), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _unreadable(name: str, images: Tensor) -> Tensor:
    network = _kept(name)
    value: Tensor = -network.head(network(images)).log_softmax(-1).amax(-1)
    return value


@cache
def _kept(name: str) -> Judge:
    KEPT.mkdir(parents=True, exist_ok=True)
    return judge(name, KEPT)


@xhat.register
def unreadable_to_patches(images: Tensor) -> Tensor:
    """Of images (B, 1, 28, 28), in nats, by the transformer."""
    return _unreadable("patches", images)


@xhat.register
def unreadable_to_depthwise(images: Tensor) -> Tensor:
    """Of images (B, 1, 28, 28), in nats, by the convolutions of each channel."""
    return _unreadable("depthwise", images)


@xhat.register
def certain(images: Tensor) -> Tensor:
    """A reward that is a count: 1 where the shipped network reads a digit with a confidence above 0.99, else 0, (B,)."""
    return (xhat.penalties.unreadable_digit(images) < -torch.tensor(0.99).log()).to(images.dtype)
