"""Gradients looked at: norms, cosines and chains whose values are known."""

import json
import math

import pytest
import torch

from helpers import xhat
from oracles import SCHEDULES, SHAPE, Constant, ScaledX0
from xhat import DDIM, FLOW, X0, Denoiser, Denoising, FullChain, ImageLoss, Objective, Term, gradient_profile, uniform_times
from xhat.diffusion.weightings import between
from xhat.losses.penalties import Paired
from xhat.objective.multipliers import ConflictFree
from xhat.sampling.samplers import Euler

ALL = between(-math.inf, math.inf)


def close(a, b, rtol=1e-6, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=rtol, atol=atol)


def bright(images):
    return images.flatten(1).mean(1)


def learned_image(output, terms):
    schedule = SCHEDULES["cosine"]()
    net = Constant(torch.full((1, *SHAPE), output, dtype=torch.float64))
    return Objective(Denoiser(net, schedule, X0), terms)


@pytest.mark.parametrize(("sign", "cosine"), [(1.0, 1.0), (-1.0, -1.0)])
def test_norms_and_cosines_by_hand(sign, cosine):
    """Output 0.5 against data 0: base gradient 2·0.5/4 in each of 4 pixels; the penalty's is 1/4."""
    image = ImageLoss(lambda x: sign * bright(x), weighting=ALL)
    objective = learned_image(0.5, {"base": Term(Denoising(space=X0), 3.0), "image": Term(image, 0.1)})
    found = gradient_profile(objective, torch.zeros(4, *SHAPE, dtype=torch.float64), logsnr=torch.tensor([-2.0, 0.0, 2.0]))
    close(found.logsnr, [-2.0, 0.0, 2.0])
    close(found.terms["base"].norm, [0.5] * 3)
    close(found.terms["image"].norm, [0.5] * 3)
    close(found.terms["image"].cosine, [cosine] * 3)
    close(found.terms["base"].cosine, [cosine] * 3)


def test_orthogonal_gradients_and_a_term_with_a_multiplier():
    """The penalty differs between two pixels that the base treats alike; a multiplier's term is no base."""
    columns = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    image = ImageLoss(lambda x: (columns * x).flatten(1).mean(1), weighting=ALL)
    objective = learned_image(0.5, {"base": Term(Denoising(space=X0)), "image": Term(image, ConflictFree())})
    found = gradient_profile(objective, torch.zeros(4, *SHAPE, dtype=torch.float64), logsnr=torch.zeros(1))
    close(found.terms["image"].cosine, [0.0])
    assert math.isnan(found.terms["base"].cosine[0])


def test_no_gradient_where_the_gate_is_shut():
    image = ImageLoss(bright, weighting=between(1, 3))
    objective = learned_image(0.5, {"base": Term(Denoising(space=X0)), "image": Term(image, 0.1)})
    found = gradient_profile(objective, torch.zeros(2, *SHAPE, dtype=torch.float64), logsnr=torch.tensor([0.0, 2.0]))
    assert found.terms["image"].norm[0] == 0
    assert found.terms["image"].norm[1] > 0
    assert math.isnan(found.terms["image"].cosine[0])


def test_the_chain_is_the_product_of_the_jacobians():
    """A linear network: each Euler step on the straight path multiplies z by 1 + (s - t) d velocity/dz."""
    schedule = SCHEDULES["flow"]()
    denoiser = Denoiser(ScaledX0(schedule, FLOW, scale=0.7), schedule, FLOW)
    image = ImageLoss(bright, FullChain(Euler(), 5))
    objective = Objective(denoiser, {"base": Term(Denoising(space=X0)), "image": Term(image)})
    x0 = torch.zeros(3, *SHAPE, dtype=torch.float64)
    found = gradient_profile(objective, x0, logsnr=torch.zeros(1)).chains["image"]
    times = uniform_times(schedule, 5)
    close(found.t, times)
    expected = [0.5]  # ‖d mean of 4 pixels / d z‖ at the data
    for t, s in zip(times[:-1].flip(0), times[1:].flip(0), strict=True):
        alpha, sigma = 1 - float(t), float(t)
        slope = (1 - alpha * 0.7) / sigma - 0.7  # d(noise_hat - x0_hat)/dz
        expected.insert(0, expected[0] * abs(1 + float(s - t) * slope))
    close(found.norm, expected)


def test_a_loss_without_a_chain_is_given_one_and_a_paired_one_has_none():
    schedule = SCHEDULES["cosine"]()
    denoiser = Denoiser(ScaledX0(schedule, X0), schedule, X0)
    paired = Paired(lambda a, b: ((a - b) ** 2).flatten(1).mean(1))
    terms = {"base": Term(Denoising(space=X0)), "a": Term(ImageLoss(bright)), "b": Term(ImageLoss(paired))}
    found = gradient_profile(Objective(denoiser, terms), torch.zeros(2, *SHAPE, dtype=torch.float64), steps=7)
    assert list(found.chains) == ["a"]
    assert len(found.chains["a"].t) == 8
    assert len(found.logsnr) == 9
    same = gradient_profile(
        Objective(denoiser, {**terms, "a": Term(ImageLoss(bright, FullChain(DDIM(), 7)))}),
        torch.zeros(2, *SHAPE, dtype=torch.float64),
        logsnr=torch.zeros(1),
    )
    close(same.chains["a"].norm, found.chains["a"].norm)


class TestCommand:
    def test_a_run(self, tiny_run, capsys, tmp_path):
        picture = tmp_path / "g.png"
        code, out, _ = xhat("gradients", tiny_run, "--n", 8, "--chain", 3, "--picture", picture, "--json", capsys=capsys)
        assert code == 0
        result = json.loads(out)
        assert set(result["terms"]) == {"denoise"}
        assert all(n > 0 for n in result["terms"]["denoise"]["norm"])
        assert len(result["chains"]["total_variation"]["norm"]) == 4
        assert picture.stat().st_size > 10_000

    def test_the_table_fits_a_terminal(self, tiny_run, capsys, tmp_path):
        code, out, _ = xhat("gradients", tiny_run, "--n", 8, "--chain", 3, "--picture", tmp_path / "g.png", capsys=capsys)
        assert code == 0
        assert "total_variation, a chain of 3 steps" in out
        assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith(("picture", "/")))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nowhere.yaml",), "does not exist"),
            (("mnits",), "did you mean mnist"),
            (("mnist", "--n", 0), "at least 1"),
            (("mnist", "--picture", "no/such/folder/g.png"), "does not exist"),
        ],
    )
    def test_mistakes_are_one_line(self, arguments, message, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, out, err = xhat("gradients", *arguments, capsys=capsys)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
        assert not out
        assert not list(tmp_path.iterdir())
