"""Train the MNIST feature network that the package ships: python -m xhat.evaluation.train_digits OUT.safetensors

About two minutes on two CPU cores. Prints test accuracy, and how many test images are read with confidence >= 0.9.
"""

import sys

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from xhat.data.idx import mnist
from xhat.data.images import to_float
from xhat.evaluation.fid import features_of, read_digits
from xhat.networks.digits import MNISTFeatures

EPOCHS, BATCH = 8, 128


def normalize(network: MNISTFeatures, images: torch.Tensor) -> None:
    """Give the features a mean variance of 1 and leave the readings as they are: FID and KID then have a scale of their own."""
    linear = network.hidden[1]
    assert isinstance(linear, torch.nn.Linear)
    with torch.no_grad():
        scale = features_of(network, images).var(0).mean().sqrt()
        linear.weight.div_(scale)
        linear.bias.div_(scale)
        network.head.weight.mul_(scale)


def main(out: str) -> None:
    torch.manual_seed(0)
    train, test = mnist("train"), mnist("test")
    assert train.labels is not None
    assert test.labels is not None
    network = MNISTFeatures()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = EPOCHS * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        for index in torch.randperm(len(train))[: len(train) // BATCH * BATCH].split(BATCH):
            images = F.pad(to_float(train.pixels[index]), (2, 2, 2, 2), value=-1.0)
            dy, dx = (int(i) for i in torch.randint(0, 5, (2,)))
            logits = network.head(network(images[:, :, dy : dy + 28, dx : dx + 28]))
            loss = F.cross_entropy(logits, train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}", flush=True)
    network.eval()
    with torch.no_grad():
        probability = network.read(features_of(network, test.pixels))
    accuracy = (probability.argmax(1) == test.labels).float().mean().item()
    sure = read_digits(probability).confident
    print(f"test accuracy {accuracy:.2%}, read with confidence >= 0.9: {sure:.2%}")
    normalize(network, train.pixels[:10000])
    weights = {k: (w.half() if w.is_floating_point() else w).contiguous() for k, w in network.state_dict().items()}
    save_file(weights, out)


if __name__ == "__main__":
    main(sys.argv[1])
