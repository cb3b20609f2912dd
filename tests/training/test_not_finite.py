"""The term that made a step infinite is named: by its value, or by its gradient where the value is finite."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

import xhat
from helpers import set_up_config, write_digits
from xhat.config.config import Config, TermConfig
from xhat.data import from_tensors
from xhat.errors import XhatError
from xhat.files.tensors import read_tensors
from xhat.rng import Shard
from xhat.training.not_finite import found_not_finite


@pytest.fixture
def setup(tmp_path):
    """Two terms on a tiny network, before the first step."""
    data = str(write_digits(tmp_path / "digits.npz"))
    terms = {"denoise": TermConfig("denoising(space=v)"), "smooth": TermConfig("image_loss(total_variation)")}
    network = "unet(widths=(8, 8), blocks=(1, 1), embedding=16)"
    yield set_up_config(Config(data=data, network=network, terms=terms, batch_size=4, max_steps=2, precision="float32"))
    Accelerator().free_memory()


def test_terms_whose_value_is_not_finite(setup, tmp_path, monkeypatch):
    """With the noise level of the samples where it is not, and the batch in a file."""
    objective, whole = setup.state.objective, setup.state.objective.per_image
    draw = objective.draw(setup.feed.get(0, Shard(0, 4), 4).x0, step=0, cond=setup.feed.get(0, Shard(0, 4), 4).cond)
    level = float(objective.denoiser.schedule.logsnr(draw.t)[2])

    def per_image(name, draw):
        value = whole(name, draw)
        return value / torch.tensor([1.0, 1.0, 0.0, 1.0]) if name == "smooth" else value

    monkeypatch.setattr(objective, "per_image", per_image)
    said, kept = found_not_finite(setup, tmp_path)
    assert said == f'term "smooth" (at logsnr {level:.1f})'
    assert kept == ["not-finite-00000000.safetensors"]
    metadata, tensors = read_tensors(tmp_path / kept[0])
    assert torch.equal(tensors["t"], draw.t)
    assert torch.equal(tensors["noise"], draw.noise)
    assert metadata["term"] == "smooth"
    assert {f"objective/{name}" for name in objective.state_dict()} <= tensors.keys()


def test_a_term_whose_gradient_alone_is_not_finite(setup, tmp_path, monkeypatch):
    """sqrt at 0: the value is 0, the gradient is infinite; of the one sample where it is."""
    objective, whole = setup.state.objective, setup.state.objective.per_image
    batch = setup.feed.get(0, Shard(0, 4), 4)
    draw = objective.draw(batch.x0, step=0, cond=batch.cond)
    level = float(objective.denoiser.schedule.logsnr(draw.t)[1])

    def per_image(name, at):
        value, broken = whole(name, at).clone(), at.t == draw.t[1]
        if name == "smooth":
            value[broken] = (value[broken] - value[broken].detach()).sqrt()
        return value

    monkeypatch.setattr(objective, "per_image", per_image)
    assert found_not_finite(setup, tmp_path)[0] == f'the gradient of term "smooth" (at logsnr {level:.1f})'


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_loss_that_compares_samples_is_named_without_looking_at_one_alone(reuse, tmp_path, monkeypatch):
    data = str(write_digits(tmp_path / "digits.npz"))
    loss = f"policy_gradient(minus(total_variation), bound_likelihood(2), full_chain(ddim, 2), group=4, reuse={reuse})"
    config = Config(
        data=data,
        network="unet(widths=(8, 8), blocks=(1, 1), embedding=16)",
        terms={"reward": TermConfig(loss)},
        batch_size=8,
        max_steps=2,
        precision="float32",
    )
    setup = set_up_config(config)
    objective, whole = setup.state.objective, setup.state.objective.per_image

    def per_image(name, draw):
        value = whole(name, draw)
        return value + (value - value.detach()).sqrt()

    monkeypatch.setattr(objective, "per_image", per_image)
    assert found_not_finite(setup, tmp_path)[0] == 'the gradient of term "reward"'
    Accelerator().free_memory()
    with pytest.raises(XhatError, match="a batch of 6 is no number of groups of 4"):
        set_up_config(replace(config, batch_size=6))
    Accelerator().free_memory()


def test_gradients_that_are_finite_one_by_one(setup, tmp_path):
    """Only their sum was not."""
    assert found_not_finite(setup, tmp_path) == ("the gradient", [])
    assert list(tmp_path.glob("not-finite*")) == []


def test_data_that_are_not_finite_are_not_blamed_on_the_training(tmp_path):
    """A NaN in a sample of one's own: no learning rate helps."""
    x0 = torch.rand(64, 1, 8, 8) * 2 - 1
    x0[37, 0, 3, 3] = math.nan
    torch.manual_seed(0)
    network = xhat.UNet(channels=1, size=8, widths=(8, 8), blocks=(1, 1), embedding=16)
    objective = xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), {"denoise": xhat.Term(xhat.Denoising(xhat.V))})
    objective._looked = True  # the first batch is refused before the training: this is one of the others
    options = {"max_steps": 8, "batch_size": 16, "ema": 0.1, "compile": "off", "eval_every": 0}
    with pytest.raises(
        XhatError, match=r"samples of step \d hold values that are not finite, kept in not-finite-.*: mend the data"
    ):
        xhat.fit(objective, from_tensors(x0, held_out=0.0), tmp_path / "run", **options)
