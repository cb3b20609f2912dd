"""Distances against closed forms, readings against labels."""

import pytest
import torch
from torch import nn

from xhat.data.idx import mnist
from xhat.data.images import to_float, to_uint8
from xhat.evaluation.fid import distance, features_of, read_digits
from xhat.networks.digits import MNISTFeatures


class FirstPixels(nn.Module):
    """The first four pixels as features."""

    def forward(self, images):
        return images.flatten(1)[:, :4]


def measured(samples, reference, network, name):
    return distance(features_of(network, samples), features_of(network, reference), name)


def test_fid_is_the_formula():
    """Against |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), with the root by eigenvalues."""
    torch.manual_seed(0)
    a = to_uint8(0.3 * torch.randn(400, 1, 4, 4))
    b = to_uint8(0.2 * torch.randn(500, 1, 4, 4) + 0.3)
    fa, fb = (to_float(x).flatten(1)[:, :4].double() for x in (a, b))
    ca, cb = fa.T.cov(), fb.T.cov()
    root = torch.linalg.eigvals(ca @ cb).real.clamp(min=0).sqrt().sum()
    expected = ((fa.mean(0) - fb.mean(0)) ** 2).sum() + ca.trace() + cb.trace() - 2 * root
    found = measured(a, b, FirstPixels(), "first pixels")
    assert found.fid == pytest.approx(expected.item(), rel=1e-6)
    assert (found.samples, found.reference, found.features) == (400, 500, "first pixels")


def test_kid_is_the_formula():
    """With one subset of everything: the unbiased estimator of the squared MMD with (x·y/d + 1)³."""
    torch.manual_seed(0)
    a, b = (to_uint8(0.3 * torch.randn(60, 1, 4, 4) + shift) for shift in (0.0, 0.2))
    x, y = (to_float(i).flatten(1)[:, :4].double() for i in (a, b))

    def kernel(p, q):
        return (p @ q.T / 4 + 1) ** 3

    n = len(x)
    same = sum((kernel(p, p).sum() - kernel(p, p).trace()) / (n * (n - 1)) for p in (x, y))
    expected = same - 2 * kernel(x, y).mean()
    found = measured(a, b, FirstPixels(), "first pixels")
    assert found.kid == pytest.approx(expected.item(), rel=1e-6)
    assert found.kid_sd == pytest.approx(0, abs=1e-9)


def test_a_set_is_at_no_distance_from_itself_and_noise_is_far():
    real = mnist("test").pixels[:600]
    network = MNISTFeatures.trained()
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8)
    itself, far = measured(real, real, network, "mnist"), measured(noise, real, network, "mnist")
    assert itself.fid == pytest.approx(0, abs=1e-4)
    assert far.fid > 50 * measured(mnist("train").pixels[:600], real, network, "mnist").fid


def test_the_shipped_network_reads_the_test_set():
    test = mnist("test")
    network = MNISTFeatures.trained()
    probability = network.read(features_of(network, test.pixels[:2000]))
    assert (probability.argmax(1) == test.labels[:2000]).double().mean() > 0.99
    reading = read_digits(probability)
    assert reading.confident > 0.97
    assert sum(reading.digits) == 2000


def test_features_have_a_variance_of_one():
    """So that FID and KID have a scale of their own, whatever the training left behind."""
    features = features_of(MNISTFeatures.trained(), mnist("train").pixels[:4000])
    assert features.var(0).mean().item() == pytest.approx(1, abs=0.03)
