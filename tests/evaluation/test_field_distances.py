"""Spectra and histograms of fields by closed forms, and pictures of what is no picture."""

import math

import pytest
import torch

from xhat.evaluation.field_pictures import LINES, pictures
from xhat.evaluation.fields import field_distance, histogram_distance, spectrum


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16,), (16, 12), (8, 12, 6)])
def test_white_noise_has_the_same_power_at_every_wavenumber(shape):
    found = spectrum(normal(2000, 2, *shape) * torch.tensor([1.0, 3.0]).reshape(2, *(1,) * len(shape)))
    assert found.shape == (2, min(shape) // 2)
    torch.testing.assert_close(found, torch.tensor([[1.0], [9.0]]).double().expand_as(found), rtol=0.1, atol=0)


def test_a_wave_is_where_it_is_and_its_power_is_its_variance():
    x = torch.arange(32.0).double()
    wave = 2 * torch.cos(2 * math.pi * 5 * x / 32)[None, None] + 7  # variance 2, at 5 and -5
    found = spectrum(wave)[0]
    assert int(found.argmax()) + 1 == 5
    assert float(found[4]) * 2 / 32 == pytest.approx(2.0)  # |FFT|² / values, over both signs, by Parseval
    assert float(found.sum()) == pytest.approx(float(found[4]))


def test_rings_of_an_image_count_waves_in_any_direction():
    y, x = torch.meshgrid(torch.arange(24.0).double(), torch.arange(24.0).double(), indexing="ij")
    waves = torch.cos(2 * math.pi * (3 * x + 4 * y) / 24)[None, None]
    assert int(spectrum(waves)[0].argmax()) + 1 == 5


@pytest.mark.parametrize(("factor", "decibels"), [(1.0, 0.0), (2.0, 20 * math.log10(2)), (0.5, 20 * math.log10(2))])
def test_a_louder_field_is_that_many_decibels_away(factor, decibels):
    real = normal(64, 1, 16, 16)
    found = field_distance(factor * real, real)
    assert found.spectrum_db == pytest.approx(decibels, abs=1e-9)
    assert found.ratio == pytest.approx([factor**2] * 8)


@pytest.mark.parametrize("shape", [(20000, 1), (500, 1, 40), (500, 1, 5, 8)])
def test_histograms_of_shifted_and_of_wider_normals(shape):
    """W1 of N(0, 1) and N(m, s²): |m| of a shift, |s - 1| E|Z| = |s - 1| sqrt(2/pi) of a factor."""
    real = normal(*shape)
    assert histogram_distance(real, real) == 0
    assert histogram_distance(real + 0.3, real) == pytest.approx(0.3, rel=0.02)
    assert histogram_distance(10 + 5 * (real + 0.3), 10 + 5 * real) == pytest.approx(0.3, rel=0.02)  # whatever the units
    assert histogram_distance(1.5 * real, real) == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.03)


def test_channels_count_alike_whatever_their_units():
    real = normal(400, 2, 8, 8) * torch.tensor([1.0, 1e-6]).reshape(2, 1, 1)
    moved = real + torch.tensor([0.0, 0.4e-6]).reshape(2, 1, 1)
    assert histogram_distance(moved, real) == pytest.approx(0.2, rel=0.02)


def test_vectors_have_no_spectrum():
    found = field_distance(normal(50, 3), normal(60, 3, seed=1))
    assert (found.spectrum_db, found.ratio) == (None, [])


def test_maps_of_channels_from_dark_to_bright():
    fields = torch.zeros(2, 2, 4, 4)
    fields[0, 0, 0, 0], fields[1, 0, 3, 3] = -5, 5
    fields[:, 1] = 3.0
    found = pictures(fields)
    zoom = 12
    assert found.shape == (2, 3, 4 * zoom + 4, 2 * 4 * zoom + 1 + 4)
    assert found[0, :, 0, 0].tolist() == [255, 255, 255]  # around it
    found = found[:, :, 2:-2, 2:-2]
    dark, bright = found[0, :, 0, 0].tolist(), found[1, :, -1, 4 * zoom - 1].tolist()
    assert dark == [68, 1, 84]
    assert bright == [253, 231, 37]
    assert found[0, :, 5, 4 * zoom].tolist() == [32, 32, 32]  # between the channels
    assert len(found[:, :, :, 4 * zoom + 1 :].flatten(2).unique(dim=2).squeeze(0).unique(dim=0)) <= 2  # constant: one colour


def test_volumes_show_their_middle_slices():
    volume = torch.zeros(1, 1, 4, 6, 8)
    volume[0, 0, 2], volume[0, 0, :, 3], volume[0, 0, :, :, 4] = 1, 1, 1
    found = pictures(volume)
    assert (found[0, 2, 2:10, 2 : 8 * 8] < 200).all()  # bright all over: yellow has little blue
    assert found.shape[0] == 1
    assert pictures(torch.zeros(1, 1, 4, 6, 8)).shape == found.shape


def test_signals_are_lines_of_their_colours():
    ramp = torch.linspace(0, 1, 50)[None, None]
    found = pictures(torch.cat([ramp, 1 - ramp], 1))[0].permute(1, 2, 0).reshape(-1, 3).int()
    for colour in LINES[:2]:
        assert int((found - torch.tensor(colour)).abs().sum(1).min()) < 150
    rising = pictures(ramp)[0].float().mean(0)
    ink = (255 - rising).clamp(min=0)
    columns = torch.arange(ink.shape[1])
    height = (ink * torch.arange(ink.shape[0]).unsqueeze(1)).sum(0) / ink.sum(0).clamp(min=1)
    left, right = float(height[columns < 60].mean()), float(height[columns > 100].mean())
    assert left > right + 20  # higher values are further up


@pytest.mark.parametrize("shape", [(3, 2), (1, 2, 2, 2, 2, 2)])
def test_others_have_no_picture(shape):
    with pytest.raises(ValueError, match="have no picture"):
        pictures(torch.zeros(shape))
