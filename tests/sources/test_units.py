"""Units: normalisations by hand, their inverses, and the volume that a density changes by."""

import math

import pytest
import torch

from xhat.data.units import Statistics, Units, asinh, bits, given, log, min_max, named, said, standard
from xhat.errors import ConfigError, DataError

FOUND = Statistics((1.0, 200.0), (0.5, 0.0), (-1.0, 200.0), (3.0, 200.0), False)


def values(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4 + 0.5


def test_each_way_by_hand():
    assert standard().units(FOUND) == Units((1.0, 200.0), (0.5, 0.2))  # a constant channel is nearly itself
    assert min_max().units(FOUND) == Units((1.0, 200.0), (2.0, 0.2))
    assert given(2, (1, 5)).units(FOUND) == Units((2.0,), (1.0, 5.0))
    assert bits().units(Statistics((0.0,), (0.0,), (0.0,), (3000.0,), True)) == Units((2047.5,), (2047.5,))
    assert standard(log(0.5)).units(FOUND).map == ("log", (0.5,))


@pytest.mark.parametrize("map", [None, log(), log(0.3), asinh(0.7)])
@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 5), (3, 2, 4, 5), (3, 2, 2, 3, 4)])
def test_they_are_inverted(map, shape):
    units = given((0.3, -1.0), (2.0, 0.5), map).units(FOUND)
    v = values(*shape)
    x = units.normalised(v)
    by_hand = v if map is None else (v + map.offset).log() if isinstance(map, log) else (v / map.scale).asinh()
    axes = (2, *(1,) * (len(shape) - 2))
    torch.testing.assert_close(x, (by_hand - torch.tensor([0.3, -1.0]).reshape(axes)) / torch.tensor([2.0, 0.5]).reshape(axes))
    torch.testing.assert_close(units(x), v)
    assert torch.autograd.gradcheck(units, x.requires_grad_())


@pytest.mark.parametrize("map", [None, log(0.2), asinh(0.7)])
def test_the_volume_is_the_determinant_of_the_map(map):
    units = given((0.3, -1.0), (2.0, 0.5), map).units(FOUND)
    x = units.normalised(values(3, 2, 4))
    for k in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda one: units(one[None])[0], x[k]).reshape(8, 8)
        torch.testing.assert_close(units.volume(x)[k], jacobian.logdet())


def test_one_number_for_all_channels_and_whole_numbers_in():
    units = Units((2047.5,), (2047.5,))
    deep = torch.tensor([[[0, 4095]], [[1000, 2000]]], dtype=torch.uint16)
    assert units.normalised(deep)[0].tolist() == [[-1, 1]]
    assert units.normalised(deep).dtype == torch.float32
    with pytest.raises(ValueError, match="2 channels for samples of 3"):
        Units((0.0, 1.0), (1.0,))(torch.zeros(1, 3, 4))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: given(scale=0), "scales above 0"),
        (lambda: given(shift=math.nan), "finite"),
        (lambda: given((1, 2), (1, 2, 3)), "2 shifts and 3 scales"),
        (lambda: given((1, 2, 3)).units(FOUND), "3 channels, the data have 2"),
        (lambda: bits().units(FOUND), "whole numbers from 0"),
        (lambda: named(len), "a map is a registered dataclass of numbers"),
        (lambda: standard(3).units(FOUND), "a map is a registered dataclass of numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


def test_a_map_that_is_not_there_is_named():
    with pytest.raises(DataError, match="a map cube that nobody has registered: bring it with --use"):
        Units((0.0,), (1.0,), ("cube", ()))(torch.zeros(1, 1))


def test_they_are_said_in_a_few_words():
    assert said(Units((0.25, 1.0), (3.0,), ("log", (0.001,)))) == "normalised by log(0.001), shift 0.25, 1 and scale 3"
