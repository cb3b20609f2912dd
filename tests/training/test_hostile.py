"""What people bring and nobody thought of: each is right, or one line before anything is written."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import xhat
from xhat.data import from_dataset, from_iterable, from_tensors
from xhat.errors import DataError, RunError
from xhat.rng import Shard

QUICK = {"max_steps": 4, "batch_size": 8, "compile": "off", "log_every": 2, "checkpoint_every": 3}
X = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.3)

    def forward(self, z, t, label=None):
        x = self.b(torch.relu(self.drop(self.a(torch.cat([z, t[:, None]], 1)))))[:, :3]
        return x if label is None else x + label[:, None]


def objective(net=None, terms=None):
    torch.manual_seed(0)
    denoiser = xhat.Denoiser(net or Net(), xhat.Cosine(), xhat.V)
    return xhat.Objective(denoiser, terms or {"d": xhat.Term(xhat.Denoising(xhat.V))})


class Stops(xhat.Callback):
    def step(self, at):
        if at.step == 2:
            at.stop()


def test_tied_weights_are_saved_and_resumed(tmp_path):
    def tied():
        torch.manual_seed(3)
        net = Net()
        net.b.weight = net.a.weight
        return objective(net)

    for ema in (0.1, 0.0):
        run = tmp_path / str(ema)
        xhat.fit(tied(), X, run, **QUICK, ema=ema, callbacks=[Stops()])
        again = xhat.fit(tied(), X, run, **QUICK, ema=ema, resume=True)
        whole = xhat.fit(tied(), X, tmp_path / f"whole {ema}", **QUICK, ema=ema)
        assert torch.equal(again.denoiser.net.a.weight, again.denoiser.net.b.weight)
        assert torch.equal(again.denoiser.net.a.weight, whole.denoiser.net.a.weight)


def test_what_a_callback_does_with_the_denoiser_leaves_no_trace(tmp_path):
    """It is in evaluation mode, and training goes on as it was, also where it is the very network."""

    class Uses(xhat.Callback):
        def step(self, at):
            assert not any(part.training for part in at.denoiser.modules())
            z, t = torch.zeros(4, 3), torch.full((4,), 0.5)
            assert torch.equal(at.denoiser(z, t).x0, at.denoiser(z, t).x0)
            xhat.validate(at.denoiser, X[:10])
            at.denoiser.train()

    for ema in (0.1, 0.0):
        with_callback = xhat.fit(objective(), X, tmp_path / f"a{ema}", **QUICK, ema=ema, callbacks=[Uses()])
        without = xhat.fit(objective(), X, tmp_path / f"b{ema}", **QUICK, ema=ema)
        pairs = zip(with_callback.denoiser.parameters(), without.denoiser.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_validate_leaves_every_part_in_its_own_mode():
    denoiser = objective().denoiser.train()
    denoiser.net.drop.eval()
    xhat.validate(denoiser, X)
    assert denoiser.net.training
    assert not denoiser.net.drop.training


def test_a_loader_is_as_many_samples_as_it_has():
    denoiser, few = objective().denoiser, X[:12]
    found, wanted = xhat.validate(denoiser, DataLoader(few, batch_size=5)), xhat.validate(denoiser, few)
    assert (found.samples, wanted.samples) == (12, 12)
    assert found == xhat.validate(denoiser, DataLoader(few, batch_size=12)), "however it is cut"
    with pytest.raises(DataError, match="at least 2 samples"):
        xhat.validate(denoiser, DataLoader(X[:1]))
    assert from_iterable(DataLoader(few, batch_size=5)).available(7) == 7


def test_a_stream_forgets_what_it_skips():
    kept = []

    def batches():
        for k in range(400):
            kept.append(torch.full((10, 2), float(k)))
            yield kept.pop()

    own = from_iterable(batches)
    assert own.get(49, Shard(0, 80), 4).x0[:, 0].tolist() == [392.0] * 4


HELD_OUT = {
    "no label": (lambda: from_tensors(X, {"label": torch.arange(64) % 3}), X, "held-out data cannot be measured"),
    "one sample": (lambda: X, X[:1], "one sample, which says nothing of a spread"),
    "not finite": (lambda: X, X * float("nan"), "values that are not finite"),
    "another shape": (lambda: X, torch.randn(64, 4), r"held out: .* gave samples \(4,\) after samples \(3,\)"),
}


class Needs(Net):
    def forward(self, z, t, label):
        return super().forward(z, t, label)


@pytest.mark.parametrize(("data", "held_out", "said"), HELD_OUT.values(), ids=HELD_OUT)
def test_held_out_data_that_cannot_be_measured_are_said_at_once(data, held_out, said, tmp_path):
    net = Needs() if "cannot" in said else Net()
    with pytest.raises((RunError, DataError), match=said):
        xhat.fit(objective(net), data(), tmp_path / "run", held_out=held_out, **QUICK)
    assert not (tmp_path / "run").exists()


def test_held_out_data_are_all_held_out(tmp_path, capsys):
    xhat.fit(objective(), X, tmp_path / "run", held_out=torch.randn(400, 3), **QUICK)
    assert "400 held out" in capsys.readouterr().err


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Whole(Net):
    def __init__(self):
        super().__init__()
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


class Marked:
    def __init__(self, mark):
        self.mark = mark

    def get(self, step, shard, rows):
        return xhat.Batch(torch.zeros(rows, 3))

    def fingerprint(self):
        if isinstance(self.mark, Exception):
            raise self.mark
        return self.mark


REFUSED = {
    "frozen": (lambda: (objective(Frozen()), X, {}), RunError, "nothing can be trained"),
    "whole numbers": (lambda: (objective(Whole()), X, {}), RunError, "net.count is torch.int64: keep what is no float"),
    "complex": (lambda: (objective(), X.to(torch.complex64), {}), DataError, "x0 is complex: give real and imaginary part"),
    "objects": (lambda: (objective(), np.array([["a", "b", "c"]] * 9), {}), DataError, "x0 are no numbers"),
    "bytes": (lambda: (objective(), Marked(b"x"), {}), DataError, r"fingerprint\(\) returns text, got a bytes"),
    "no mark": (lambda: (objective(), Marked(OSError("gone")), {}), DataError, r"failed at fingerprint\(\): OSError: gone"),
    "samples": (lambda: (objective(), DataLoader(X, batch_size=None), {}), DataError, "where batches are needed"),
    "labels below 0": (lambda: (objective(), from_tensors(X, {"label": torch.full((64,), -1)}), {}), DataError, "from 0"),
}


@pytest.mark.parametrize(("given", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_one_line_before_anything_is_written(given, error, said, tmp_path):
    def run():
        own, data, more = given()
        xhat.fit(own, data, tmp_path / "run", **{**QUICK, **more})

    with pytest.raises(error, match=said):
        run()
    assert not (tmp_path / "run").exists()


def test_what_people_have_just_trains(tmp_path):
    class Iterates(IterableDataset):
        def __iter__(self):
            return iter(X)

    for k, data in enumerate(
        (
            TensorDataset(X),
            DataLoader(TensorDataset(X), batch_size=8),
            DataLoader(Iterates(), batch_size=8),
            X.numpy()[::-1],
            X.double(),
            list(X),
        )
    ):
        assert xhat.fit(objective(), data, tmp_path / str(k), **QUICK).finished
    assert xhat.fit(objective(), X, tmp_path / "n", **{**QUICK, "max_steps": np.int64(2)}).step == 2


def test_another_mask_is_other_data(tmp_path):
    def data(mask):
        return from_tensors(X, extra={"mask": mask})

    marks = {data(mask).fingerprint() for mask in (np.ones((64, 3)), np.zeros((64, 3)), ["a"] * 64, ["b"] * 64)}
    assert len(marks) == 4
    assert data(["a"] * 64).fingerprint() in marks


def test_a_label_where_a_mapping_belongs_is_said():
    class Pairs(Marked):
        def get(self, step, shard, rows):
            return torch.zeros(rows, 3), torch.zeros(rows)

    with pytest.raises(DataError, match="cond is a Tensor: give a mapping of names"):
        xhat.validate(objective().denoiser, Pairs("x"))
    with pytest.raises(DataError, match="a sample cannot be read: KeyError"):
        from_dataset([{"x": X[0]}], read=lambda item: item["y"])
    with pytest.raises(DataError, match="values that are not finite"):
        xhat.validate(objective().denoiser, X * float("inf"))


PROGRAM = """
import torch, xhat
from xhat.errors import XhatError
net = torch.nn.Linear(3, 3)
denoiser = xhat.Denoiser(net, xhat.Cosine(), xhat.V)
own = xhat.Objective(denoiser, {"d": xhat.Term(xhat.Denoising(xhat.V))})
X = torch.zeros(64, 3)
for call in (
    lambda: xhat.fit(denoiser, X, "run", max_steps=2),
    lambda: xhat.fit(own, X, "run", max_steps=2, callbacks=[xhat.Callback]),
    lambda: xhat.fit(own, X, "run", max_steps=2, callbacks=xhat.Callback()),
    lambda: xhat.fit(own, X, "", max_steps=2),
    lambda: xhat.data.from_tensors(X, {"c": ["a"] * 64}),
    lambda: xhat.data.from_tensors(X, X),
    lambda: xhat.validate(own, X),
):
    try:
        call()
    except XhatError as error:
        print(error)
"""


def test_arguments_of_other_types_are_one_line(tmp_path):
    """In a process of its own, where nothing checks signatures."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for line, said in zip(
        lines,
        (
            "fit trains an xhat.Objective, got Denoiser",
            "callbacks is a list of objects of xhat.Callback, got Callback",
            "callbacks is a list of objects of xhat.Callback, got Callback",
            "run is empty: name a folder",
            'cond["c"] are no numbers',
            "cond is a Tensor: give a mapping of names",
            "validate measures an xhat.Denoiser, got Objective: of an objective its .denoiser",
        ),
        strict=True,
    ):
        assert said in line
    assert not list(tmp_path.iterdir())
