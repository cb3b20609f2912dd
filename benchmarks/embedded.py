"""Digits in a space of more dimensions than they have, by a fixed rotation: a manifold that is known.

As parts of a config, `--use benchmarks/embedded.py` names the data `embedded_digits(dims)`, vectors x = Q y of the first 64
principal components y of MNIST, Q a fixed matrix of orthonormal columns, and two penalties of such vectors:
`beside_the_manifold`, the share of a sample's energy outside of the columns of Q, and `unreadable_back`, -log of the largest
probability of a digit once the sample is a picture again.
"""

from functools import cache

import torch
from torch import Tensor

import xhat
from xhat.data.images import to_float
from xhat.data.load import load

COMPONENTS = 64


@cache
def components() -> tuple[Tensor, Tensor, Tensor]:
    """The mean (784,), the components (784, 64) and the coordinates (60000, 64) of MNIST's training digits in [-1, 1]."""
    pixels = to_float(torch.as_tensor(load("mnist").pixels[:])).flatten(1)
    mean = pixels.mean(0)
    values, vectors = torch.linalg.eigh((pixels - mean).T @ (pixels - mean))
    found = vectors[:, values.argsort(descending=True)[:COMPONENTS]]
    return mean, found, (pixels - mean) @ found


@cache
def rotation(dims: int) -> Tensor:
    """Q, (dims, 64)."""
    own = torch.Generator().manual_seed(0)
    found: Tensor = torch.linalg.qr(torch.randn(dims, COMPONENTS, generator=own, dtype=torch.float64))[0].float()
    return found


@xhat.register.data
def embedded_digits(dims: int = 256, seed: int = 0) -> xhat.data.DataSource:
    """The digits as vectors of so many dimensions."""
    return xhat.data.from_tensors(components()[2] @ rotation(dims).T, held_out=1 / 30, seed=seed, name="embedded digits")


@xhat.register.penalty
def beside_the_manifold(x: Tensor) -> Tensor:
    """Energy outside of the digits' subspace over all of it, (B, D) -> (B,)."""
    inside = x @ rotation(x.shape[1])
    return 1 - inside.square().sum(1) / x.square().sum(1)


@xhat.register.penalty
def unreadable_back(x: Tensor) -> Tensor:
    """`unreadable_digit` of the pictures that the vectors are of, (B, D) -> (B,)."""
    mean, vectors, _ = components()
    images = mean + x @ rotation(x.shape[1]) @ vectors.T
    unreadable: Tensor = xhat.penalties.unreadable_digit(images.reshape(-1, 1, 28, 28))
    return unreadable
