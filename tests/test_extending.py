"""docs/extending.md: one of each part, added as the page says, is found by configs and trains."""

import re
from pathlib import Path

import pytest
import torch

import xhat
from helpers import xhat as command
from xhat.config.build import build_denoiser, build_objective, build_sampling
from xhat.config.config import Config, TermConfig
from xhat.config.expressions import evaluate
from xhat.config.names import OF_TERMS
from xhat.config.options import SamplingConfig
from xhat.data.shape import DataShape

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
PARTS = {
    "soft_min_snr": ("soft_min_snr(5)", None),
    "half_flow": ("half_flow", "HALF_FLOW"),
    "triangular": ("triangular", "Triangular()"),
    "brightness": ("brightness", None),
    "agreement": ("agreement", "Agreement()"),
    "halfway": ("halfway", "Halfway()"),
}


@pytest.fixture
def added():
    """The page's own names, after its code has run."""
    scope = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```\n", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), scope)
    return scope


def test_every_part_is_a_name_in_expressions_in_both_spellings(added):
    for small, python in PARTS.values():
        made = evaluate(small, OF_TERMS)
        assert python is None or type(evaluate(python, OF_TERMS)) is type(made)


def config(**changes):
    terms = {
        "denoise": TermConfig("denoising(space=x0, weighting=soft_min_snr(5))", when="ramp(10)"),
        "bright": TermConfig("image_loss(brightness, full_chain(halfway(), 3, last(1)))", weight="one_over(0.9)"),
        "agree": TermConfig("agreement", weight=0.1),
    }
    return Config(network="tiny(width=4)", schedule="laplace", target="half_flow", times="triangular", terms=terms, **changes)


def test_all_of_them_make_one_objective_that_learns(added):
    """Each term has a gradient, and the multiplier and the gate their say."""
    made = config(sampling=SamplingConfig(sampler="halfway", steps=4))
    denoiser = build_denoiser(made, DataShape(1, 8, None))
    objective = build_objective(made, denoiser)
    x0 = 2 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    first, later = objective(x0, step=0), objective(x0, step=5)
    assert "denoise" not in first  # ramp(10) is 0 at step 0
    assert 0 < later["bright.lambda"].item() != 1
    expected = 0.5 * later["denoise"] + later["bright.lambda"] * later["bright"] + 0.1 * later["agree"]
    later["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in denoiser.net.parameters())
    assert later["loss"].item() == pytest.approx(expected.item(), rel=0.1)  # lambda moved after it was used
    images, _ = build_sampling(made.sampling, denoiser.schedule).generate(denoiser, DataShape(1, 8, None), 2)
    assert images.shape == (2, 1, 8, 8)


def test_the_command_line_trains_it_and_samples(added, tmp_path, digits):
    """A config that names them is like any other."""
    from xhat.config.parsing import write_config

    write_config(config(max_steps=2, batch_size=4, data=str(digits), compile="off"), tmp_path / "mine.yaml")
    assert command("train", tmp_path / "mine.yaml", "--run", tmp_path / "run")[0] == 0
    assert (
        command("sample", tmp_path / "run", "--n", 2, "--steps", 3, "--sampler", "halfway", "--out", tmp_path / "s.npz")[0] == 0
    )
    assert xhat.load(tmp_path / "run").config.target == "half_flow"


def test_names_that_are_taken_are_refused(added):
    from xhat.registry import PENALTIES

    with pytest.raises(ValueError, match="there is a penalty called brightness already"):
        PENALTIES.register(added["brightness"])
