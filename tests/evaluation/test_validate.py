"""xhat.validate: the common scale for any model and any data, against the exact denoiser and the commands' own numbers."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import xhat
from oracles import GaussianData, exact
from xhat.data import Batch, from_dataset, from_iterable, from_tensors
from xhat.errors import DataError
from xhat.evaluation.denoising import LEVELS, denoising_error
from xhat.evaluation.floor import floor_errors


class Net(nn.Module):
    """A guess that is no good, with dropout, which must be off while it is measured."""

    def __init__(self, channels=1):
        super().__init__()
        self.body, self.drop = nn.Conv2d(channels, channels, 3, padding=1), nn.Dropout(0.5)

    def forward(self, z, t, label=None):
        shift = 0 if label is None else 0.1 * label.reshape(-1, 1, 1, 1)
        return self.drop(self.body(z)) + shift


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return xhat.Denoiser(Net(), xhat.Cosine(), xhat.V)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_it_is_the_error_of_the_common_scale(denoiser, pixels):
    source = from_tensors(pixels, held_out=0)
    found = xhat.validate(denoiser, source)
    x0 = source.get(0, xhat.Shard(0, 60), 60).x0.float() / 127.5 - 1
    again = denoising_error(denoiser.eval(), x0)
    assert found.levels.logsnr == list(LEVELS)
    assert found.levels.x0_error == pytest.approx(again.x0_error, rel=1e-5)
    assert (found.bits_per_dim, found.bits_per_dim_se) == (found.levels.bits_per_dim, found.levels.bits_per_dim_se)
    assert found.samples == 60


def test_two_networks_that_are_one_function_get_the_same_numbers(rng):
    """The exact denoiser of Gaussian data, asked for v and for the noise, on different schedules."""
    data = GaussianData()
    x0 = data.sample(400, rng).float()
    both = [
        xhat.validate(exact(data, schedule, target), x0, known=data.sample(2000, rng).float())
        for schedule, target in ((xhat.Cosine(), xhat.V), (xhat.schedules.LinearLogSNR(), xhat.NOISE))
    ]
    errors = [dict(zip(v.levels.logsnr, v.levels.x0_error, strict=True)) for v in both]
    common = errors[0].keys() & errors[1].keys()
    assert len(common) > 10
    assert [errors[0][level] for level in common] == pytest.approx([errors[1][level] for level in common], rel=1e-5)
    assert both[0].above_floor is not None


def test_the_model_is_left_as_it_was(denoiser, pixels):
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    for training in (True, False):
        denoiser.train(training)
        first, second = xhat.validate(denoiser, pixels), xhat.validate(denoiser, pixels)
        assert denoiser.training == training
        assert first == second, "the same noise each time, dropout off"
    assert all(torch.equal(before[name], value) for name, value in denoiser.state_dict().items())
    assert all(p.grad is None for p in denoiser.parameters())


def test_any_data_give_the_same_number(denoiser, pixels):
    x0 = pixels.float() / 127.5 - 1
    wanted = xhat.validate(denoiser, from_dataset([x[None][0] for x in x0], held_out=0)).bits_per_dim
    assert xhat.validate(denoiser, x0).bits_per_dim == pytest.approx(wanted, rel=1e-5)
    ordered = xhat.validate(denoiser, DataLoader(x0, batch_size=60))
    assert ordered.samples == 60
    for loader in (DataLoader(x0, batch_size=7), from_iterable([x0[:20], x0[20:]])):
        assert xhat.validate(denoiser, loader) == ordered


def test_what_the_network_is_told_goes_along(denoiser, pixels):
    label = torch.arange(60) % 3
    told = xhat.validate(denoiser, pixels, {"label": label})
    assert told.bits_per_dim != xhat.validate(denoiser, pixels).bits_per_dim
    pairs = from_dataset(TensorDataset(pixels, label), held_out=0)
    assert xhat.validate(denoiser, pairs).bits_per_dim == pytest.approx(told.bits_per_dim, rel=1e-6)
    with pytest.raises(DataError, match="cond goes with a tensor"):
        xhat.validate(denoiser, pairs, {"label": label})
    assert "nobody knows it for a network that is told label" in xhat.validate(denoiser, pairs, known=pixels).without["floor"]


def test_the_bound_is_there_for_pixels_and_a_reason_for_others(denoiser, pixels):
    found = xhat.validate(denoiser, pixels)
    assert found.bound > found.bits_per_dim > 0
    assert found.bound_se > 0
    floats = xhat.validate(denoiser, torch.rand(60, 1, 6, 6))
    assert (floats.bound, floats.bound_se) == (None, None)
    assert "8-bit" in floats.without["bound"]
    few = xhat.validate(denoiser, pixels[:5])
    assert "it takes 10 samples, these are 5" in few.without["bound"]
    with pytest.raises(DataError, match="at least 2 samples"):
        xhat.validate(denoiser, pixels[:1])


def test_what_is_above_the_floor(denoiser, pixels):
    known = torch.randint(0, 256, (200, 1, 6, 6), dtype=torch.uint8)
    source = from_tensors(pixels, held_out=0)
    found = xhat.validate(denoiser, source, known=known)
    x0 = source.get(0, xhat.Shard(0, 60), 60).x0.float() / 127.5 - 1
    floor = floor_errors(known.float() / 127.5 - 1, x0)
    wanted = torch.tensor(found.levels.x0_error, dtype=torch.float64) - floor.lower.mean(1)
    assert found.above_floor.x0_error == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-9)
    assert found.without == {}
    assert xhat.validate(denoiser, pixels).without == {"floor": "pass known=, samples that the model was trained on"}


def test_table_picture_and_json(denoiser, pixels, tmp_path):
    found = xhat.validate(denoiser, pixels)
    text = repr(found)
    assert f"{found.bits_per_dim:.4f} ± {found.bits_per_dim_se:.4f} bits/dim within logsnr -8 to 8, 60 samples" in text
    assert "no floor: pass known=" in text
    assert len(text.splitlines()) == len(found.lines()) + 1 + len(LEVELS)
    assert found._repr_html_().count("<tr>") == 1 + len(LEVELS)
    found.save(tmp_path / "v.png")
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    found.save(tmp_path / "v.json")
    values = json.loads((tmp_path / "v.json").read_text())
    assert values["levels"]["x0_error"] == found.levels.x0_error
    assert values["above_floor"] is None
    assert found.numbers()["eval/x0_error/logsnr=-8"] == found.levels.x0_error[0]
    assert all(math.isfinite(v) for v in found.numbers().values())
    with pytest.raises(ValueError, match=r"name a .png for the picture or a .json"):
        found.save(tmp_path / "v.txt")


def test_it_is_what_a_run_logs_of_itself(tmp_path):
    """The same numbers as eval/... of the last row, on the same samples."""
    x0 = torch.rand(800, 1, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.manual_seed(0)
    denoiser = xhat.Denoiser(Net(), xhat.Cosine(), xhat.V)
    own = xhat.Objective(denoiser, {"d": xhat.Term(xhat.Denoising(xhat.V))})
    data = from_tensors(x0, value_range=(-1, 1))
    fitted = xhat.fit(own, data, tmp_path / "run", max_steps=3, batch_size=8, compile="off", sampling={"steps": 1})
    found = xhat.validate(fitted.denoiser, data.held_out, most=32)
    named = {name: value for name, value in found.numbers().items() if name in fitted.numbers and "logsnr" in name}
    assert len(named) == 9
    assert {name: fitted.numbers[name] for name in named} == pytest.approx(named, rel=1e-6)


def test_volumes_and_vectors(rng):
    for sample in ((5,), (1, 2, 3, 4)):

        class Zero(nn.Module):
            def __init__(self):
                super().__init__()
                self.p = nn.Parameter(torch.zeros(()))

            def forward(self, z, t):
                return 0 * z

        x0 = torch.randn(50, *sample, generator=rng)
        found = xhat.validate(xhat.Denoiser(Zero(), xhat.Cosine(), xhat.X0), x0)
        assert found.levels.x0_error == pytest.approx([float(x0.square().mean())] * len(LEVELS), rel=1e-5)


def test_a_source_of_another_kind_of_batch(denoiser):
    class Mine:
        def get(self, step, shard, rows):
            return Batch(torch.zeros(rows, 1, 6, 6) + torch.arange(rows).reshape(-1, 1, 1, 1) / 1000)

        def fingerprint(self):
            return "mine"

    assert xhat.validate(denoiser, Mine(), most=20).samples == 20
