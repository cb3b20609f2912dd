"""A state that was saved and loaded into a fresh one is the same, and trains on to the same."""

import pytest
import torch

from helpers import states_equal
from xhat import Denoiser, Denoising, ImageLoss, Objective, Term, V
from xhat.config.options import OptimizerConfig
from xhat.diffusion.schedules import Discrete
from xhat.diffusion.times import Adaptive
from xhat.errors import RunError
from xhat.losses.penalties import total_variation
from xhat.networks.unet import UNet
from xhat.objective.multipliers import DualAscent
from xhat.runs.checkpoint import newest_checkpoint
from xhat.training.ema import PowerAverage
from xhat.training.optimizers import build_optimizers
from xhat.training.state import State

X0 = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def fresh(seed, average=True, data="digits"):
    torch.manual_seed(seed)
    denoiser = Denoiser(UNet(widths=(8, 8), blocks=(1, 1), embedding=16, size=8), Discrete.linear_beta(8), V)
    terms = {"denoise": Term(Denoising(V)), "smooth": Term(ImageLoss(total_variation), DualAscent(0.1))}
    objective = Objective(denoiser, terms, Adaptive())
    optimizers = build_optimizers(objective, OptimizerConfig(lr=1e-2, muon_lr=1e-2))
    tracks = [PowerAverage(denoiser, 0.05)] if average else []
    return State(objective, PowerAverage(denoiser, 0.1) if average else None, optimizers, data, tracks=tracks)


def train(state, steps):
    for _ in range(steps):
        state.objective(X0, step=state.step)["loss"].backward()
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for one in (state.average, *state.tracks):
            if one is not None:
                one.update_parameters(state.objective.denoiser)
        state.step += 1
        state.seconds += 0.5


def content(state, folder):
    """All that it holds."""
    folder.mkdir()
    state.checkpoint(folder, {})()
    checkpoint, _ = newest_checkpoint(folder)
    return checkpoint.step, checkpoint.state


@pytest.mark.parametrize("average", [True, False])
def test_a_loaded_state_trains_on_to_the_same(average, tmp_path):
    """Weights, average, Muon's and Adam's moments, the sampler's history, the multiplier's price, steps and seconds."""
    straight, before = fresh(0, average), fresh(0, average)
    train(straight, 5)
    train(before, 3)
    before.checkpoint(tmp_path, {})()
    after = fresh(1, average)
    after.load(newest_checkpoint(tmp_path)[0])
    assert (after.step, after.seconds) == (3, 1.5)
    train(after, 2)
    found, expected = content(after, tmp_path / "a"), content(straight, tmp_path / "b")
    assert states_equal(found, expected)
    assert set(found[1]) == {"objective", "average", "optimizers", "seconds", "data", "given", "compiled", "tracks"}
    assert found[1]["objective"]["multipliers.smooth.price"] > 0


def test_the_average_is_sampled_from(tmp_path):
    averaged, last = fresh(0), fresh(0, average=False)
    for state in (averaged, last):
        train(state, 3)
    assert averaged.averaged() is averaged.average.module
    assert last.averaged() is last.objective.denoiser
    ours, theirs = averaged.averaged().state_dict(), last.averaged().state_dict()
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_other_data_is_refused_before_anything_changes(tmp_path):
    fresh(0, data="others").checkpoint(tmp_path, {})()
    state = fresh(1)
    weights = [p.detach().clone() for p in state.objective.parameters()]
    with pytest.raises(RunError, match=f"not those that {tmp_path} was trained on"):
        state.load(newest_checkpoint(tmp_path)[0])
    assert states_equal([p.detach() for p in state.objective.parameters()], weights)
    assert state.step == 0
