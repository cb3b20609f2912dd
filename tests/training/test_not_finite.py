"""The term that made a step infinite is named: by its value, or by its gradient where the value is finite."""

import pytest
import torch
from accelerate import Accelerator

from helpers import set_up_config, write_digits
from xhat.config.config import Config, TermConfig
from xhat.training.not_finite import culprits


@pytest.fixture
def setup(tmp_path):
    """Two terms on a tiny network, before the first step."""
    data = str(write_digits(tmp_path / "digits.npz"))
    terms = {"denoise": TermConfig("denoising(space=v)"), "smooth": TermConfig("image_loss(total_variation)")}
    network = "unet(widths=(8, 8), blocks=(1, 1), embedding=16)"
    yield set_up_config(Config(data=data, network=network, terms=terms, batch_size=4, max_steps=2, precision="float32"))
    Accelerator().free_memory()


def losses(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_terms_whose_value_is_not_finite(setup):
    assert culprits(setup, losses(denoise=1.0, smooth=torch.inf)) == 'term "smooth"'
    assert culprits(setup, losses(denoise=torch.nan, smooth=torch.inf)) == 'term "denoise" and term "smooth"'


def test_a_term_whose_gradient_alone_is_not_finite(setup, monkeypatch):
    """sqrt at 0: the value is 0, the gradient is infinite."""
    objective, whole = setup.state.objective, setup.state.objective.per_image

    def per_image(name, draw):
        value = whole(name, draw)
        return (value - value.detach()).sqrt() if name == "smooth" else value

    monkeypatch.setattr(objective, "per_image", per_image)
    assert culprits(setup, losses(denoise=1.0, smooth=0.0)) == 'the gradient of term "smooth"'


def test_gradients_that_are_finite_one_by_one(setup):
    """Only their sum was not, or only on a later micro-batch."""
    assert culprits(setup, losses(denoise=1.0)) == "the gradient"
