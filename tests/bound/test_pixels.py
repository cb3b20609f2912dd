"""What pixels tell of a network's error: functions of the noise with mean 0, learned for kinds of pixels."""

import math

import pytest
import torch

import xhat
from oracles import Levels
from xhat.bound.control import IMAGE, Control, image_features
from xhat.bound.density import Pilot, run_pilot
from xhat.bound.estimate import Progress, estimate_bound
from xhat.bound.pixels import SPACING, edges, kinds, learned, moments, of_levels, of_noise
from xhat.bound.terms import form_of


def pixels(n, seed=0):
    """A quarter of each at the two ends, the rest between them."""
    own = torch.Generator().manual_seed(seed)
    grey = torch.randint(1, 255, (n, 1, 8, 8), generator=own).double()
    where = torch.rand(n, 1, 8, 8, generator=own)
    return torch.where(where < 0.25, 0, torch.where(where > 0.75, 255, grey)) * 2 / 255 - 1


@pytest.mark.parametrize("ratio", [0.02, SPACING / 2, 0.002, 4e-4, 1e-9])
def test_functions_of_the_noise_have_mean_zero_at_every_level(ratio):
    """Against a sum over a million points, to the precision of the points."""
    place = (torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6
    noise = torch.special.ndtri(place)[None]
    mean = of_noise(noise, torch.tensor([ratio], dtype=torch.float64)).mean(2)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=2e-5)


@pytest.mark.parametrize("ratio", [SPACING / 2, 0.002, 4e-4])
def test_the_error_of_levels_is_that_of_bayes_rule(ratio):
    """Over five hundred levels, each as likely as another."""
    noise = torch.randn(1, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = SPACING * torch.arange(-250, 251, dtype=torch.float64)
    z = ratio * noise
    chance = (-((z[..., None] - level) ** 2) / (2 * ratio**2)).softmax(-1)
    found = of_levels(noise, torch.tensor([ratio], dtype=torch.float64))
    torch.testing.assert_close(found, (chance * level).sum(-1) / ratio, rtol=1e-9, atol=1e-12)


def test_kinds_tell_values_and_their_ends_apart():
    x0 = pixels(64)
    found = kinds(x0, *edges(x0))
    ends = [set(found[x0 == end].tolist()) for end in (-1, 1)]
    between = set(found[x0.abs() < 0.95].tolist())
    assert not (ends[0] & ends[1]) | (ends[0] & between) | (ends[1] & between)
    assert len(between) > 20


def test_what_pixels_do_is_learned():
    """Errors that depend on a pixel's value and noise: the slopes are found, and explain the images' mean errors."""
    x0 = pixels(400)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cell, ratio = torch.arange(400) % 2 * 2, torch.full((400,), 0.3, dtype=torch.float64)
    want = torch.where((x0 == 1) & (cell == 0).reshape(-1, 1, 1, 1), 0.0, 0.2) * (noise**2 - 1) + 0.1 * noise + 3
    at = edges(x0)
    size = 3, (len(at[0]) + 1) * (len(at[1]) + 1)  # between the two is a cell without draws
    found = learned(*at, moments(want, kinds(x0, *at), noise, cell, ratio, size))
    value = want.flatten(1).mean(1)
    left = value - found.explained(x0, noise, cell, ratio)
    for own in (cell == 0, cell == 2):
        assert float(left[own].var()) < 0.01 * float(value[own].var())


def test_errors_without_end_teach_nothing_and_harm_no_other_kind():
    x0, at = pixels(200), edges(pixels(200))
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    error = torch.where(x0 == 1, math.inf, noise**2)
    size = 1, (len(at[0]) + 1) * (len(at[1]) + 1)
    cell, ratio = torch.zeros(200, dtype=torch.int64), torch.full((200,), 0.3, dtype=torch.float64)
    found = learned(*at, moments(error, kinds(x0, *at), noise, cell, ratio, size)).slopes
    assert bool(found.isfinite().all())
    assert float(found[0, :, 1].max()) == pytest.approx(1, abs=0.05)


def test_nothing_known_explains_nothing():
    x0 = pixels(4)
    control = Control.none(100)
    found = control.of(torch.tensor([1, 5, 50, 100]), image_features(x0), x0, torch.ones_like(x0), torch.full((4,), 0.1))
    assert not found.any()
    assert image_features(x0).shape == (4, IMAGE)


@pytest.mark.parametrize("values", [torch.zeros(8, 3, 20), torch.randn(8, 2, 9, generator=torch.Generator().manual_seed(0))])
def test_signals_and_constants_have_kinds_too(values):
    at = edges(values)
    found = kinds(values, *at)
    assert found.shape == values.shape
    assert 0 <= int(found.min()) <= int(found.max()) < (len(at[0]) + 1) * (len(at[1]) + 1)


def test_pixels_pay_where_the_error_is_even_in_the_noise():
    """The posterior over levels: its error is large on either side of a level, which no opposite noise cancels."""
    schedule = xhat.schedules.LinearLogSNR(-6, 14)
    denoiser = xhat.Denoiser(Levels(schedule, list(range(256)), torch.full((256,), 1 / 256).double()), schedule, xhat.NOISE)
    x0 = (torch.randint(0, 256, (64, 1, 6, 6), generator=torch.Generator().manual_seed(3)) / 127.5 - 1).double()
    form = form_of(schedule)
    found = run_pilot(form, denoiser, x0, None)
    without = Pilot(found.probability, Control(found.control.constant, 0 * found.control.slope, found.control.pixels))
    assert not found.opposite

    def noise(pilot):
        own = [estimate_bound(denoiser, x0, x0, evaluations=4, seed=k, progress=Progress(pilot)) for k in range(6)]
        return float(torch.stack([e.per_image.bits_per_dim for e in own]).var(0).mean())

    assert noise(found) < 0.1 * noise(without)
    assert math.isfinite(noise(found))
