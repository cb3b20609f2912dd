"""The floor brackets the closed form of a Gaussian and a mixture, tightly where the data say enough."""

import math

import pytest
import torch

from oracles import GaussianData, MixtureData, exact
from xhat import Cosine
from xhat.evaluation.denoising import x0_errors
from xhat.evaluation.floor import floor_errors

DATA = {"gaussian": GaussianData(), "mixture": MixtureData()}


def drawn(name, n, seed):
    return DATA[name].sample(n, torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("name", DATA)
def test_the_floor_agrees_with_the_closed_form(name):
    """At each level: lower - 4 SE < optimum < upper + 4 SE (36 comparisons), both ends within 5 % of it up to logsnr 2.

    The optimum is that of the exact denoiser on the same images and noise; the Gaussian's is also a formula, which lies in the
    bar that is drawn: from lower to upper, with their standard errors.
    """
    data, x0, levels = drawn(name, 20000, 0), drawn(name, 1000, 1), [float(level) for level in range(-8, 9, 2)]
    floor = floor_errors(data, x0, logsnr=levels)
    optimum = x0_errors(exact(DATA[name], Cosine()).float(), x0, logsnr=levels)
    for level, low, high, best in zip(levels, floor.lower, floor.upper, optimum, strict=True):
        for above, below in ((best, low), (high, best)):  # paired: the same images and noise
            difference = above - below
            assert difference.mean() > -4 * difference.std() / math.sqrt(len(x0))
        if level <= 2:
            assert float(low.mean()) == pytest.approx(float(best.mean()), rel=0.05)
            assert float(high.mean()) == pytest.approx(float(best.mean()), rel=0.05)
        if name == "gaussian":
            closed = 0.25 / (1 + 0.25 * math.exp(level))
            ends = [(float(e.mean()), 2 * float(e.std()) / math.sqrt(len(x0))) for e in (low, high)]
            assert ends[0][0] - ends[0][1] < closed < ends[1][0] + ends[1][1]
            assert float(best.mean()) == pytest.approx(closed, abs=4 * float(best.std()) / math.sqrt(len(x0)))


def test_two_images_by_hand():
    """For data {a} and the image b: the posterior of b is a logistic function; the errors follow."""
    a, b = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    floor = floor_errors(a, b, logsnr=[0.5])
    model = x0_errors(exact(GaussianData(), Cosine()).float(), b, logsnr=[0.5])  # only to see that shapes agree
    assert floor.lower.shape == model.shape
    from xhat.evaluation.denoising import level_noise

    z = b + level_noise(b, 0.5, 0, 0) * math.exp(-0.25)
    of_b = torch.sigmoid(math.exp(0.5) * ((z * b).sum() - (b * b).sum() / 2))
    assert floor.upper.item() == pytest.approx(1.0)
    assert floor.lower.item() == pytest.approx(float((1 - of_b) ** 2), rel=1e-5)


def test_known_labels_lower_the_floor():
    """Two far components, each with its label: given the label one is left, whose closed form is a Gaussian's."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(8000) % 2
    both = (labels * 2 - 1).float().reshape(-1, 1, 1, 1) + 0.2 * torch.randn(8000, 1, 1, 2, generator=generator)
    data, x0, levels = both[:7000], both[7000:], [-4.0, -2.0, 0.0]
    free = floor_errors(data, x0, logsnr=levels)
    told = floor_errors(data, x0, labels[:7000], labels[7000:], levels)
    closed = [0.04 / (1 + 0.04 * math.exp(level)) for level in levels]
    assert told.lower.mean(1).tolist() == pytest.approx(closed, rel=0.08)
    assert told.upper.mean(1).tolist() == pytest.approx(closed, rel=0.08)
    assert (free.lower[:2].mean(1) > 3 * told.lower[:2].mean(1)).all()
    with pytest.raises(ValueError, match="no image of the data has the label 1"):
        floor_errors(data[:2], x0, torch.zeros(2, dtype=torch.int64), labels[7000:], levels)


def test_batches_do_not_matter():
    data, x0 = drawn("mixture", 300, 0), drawn("mixture", 70, 1)
    labels, own = torch.arange(300) % 3, torch.arange(70) % 3
    whole = floor_errors(data, x0, labels, own, [0.0, 2.0])
    parts = floor_errors(data, x0, labels, own, [0.0, 2.0], batch=32)
    torch.testing.assert_close(whole.lower, parts.lower, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(whole.upper, parts.upper, rtol=1e-5, atol=1e-9)
