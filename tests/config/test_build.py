"""Objects that expressions stand for."""

import pytest
import torch

from xhat.config.build import build_penalty
from xhat.errors import ConfigError
from xhat.losses.penalties import total_variation


@pytest.mark.parametrize("text", ["total_variation", "image_loss(total_variation)"])
def test_a_penalty_is_named_by_itself_or_by_its_loss(text):
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(build_penalty(text)(images), total_variation(images))


@pytest.mark.parametrize("text", ["denoising(space=v)", "image_loss(ssim(3))", "ssim(3)", "3"])
def test_what_is_no_function_of_images_alone(text):
    with pytest.raises(ConfigError, match="is no function of images alone"):
        build_penalty(text)


def test_an_unknown_penalty_is_named():
    with pytest.raises(ConfigError, match="did you mean total_variation"):
        build_penalty("total_variaton")
