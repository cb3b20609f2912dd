"""A GPU's host knows of a step one step later: nothing that is not finite reaches the weights, and what is said is the same."""

import pytest
import torch
from safetensors.torch import load_file

import xhat
from helpers import states_equal
from xhat.config.options import OptimizerConfig
from xhat.errors import RunError
from xhat.training import agreement, loop
from xhat.training.optimizers import build_optimizers

BAD = 7
HOW = {"max_steps": 12, "batch_size": 4, "log_every": 100, "sample_every": 100, "eval_every": 0}
DATA = torch.linspace(-1, 1, 32 * 16).reshape(32, 1, 4, 4)


def late(monkeypatch):
    """As on a GPU; how many steps were not known of at each."""
    behind = []

    class Late(agreement.Agreement):
        def __init__(self, accelerator, *, lags):
            super().__init__(accelerator, lags=True)

        def vote(self, *votes):
            super().vote(*votes)
            behind.append(len(self._open))

    monkeypatch.setattr(agreement, "on_the_way", lambda votes: (votes, None))
    monkeypatch.setattr(loop, "Agreement", Late)
    return behind


def trained(run, bad=None, **how):
    torch.manual_seed(0)
    network = xhat.UNet(widths=(8, 8), blocks=(1, 1), embedding=8, size=4)

    def breaks(images, draw):
        value = images.flatten(1).mean(1)
        return value / 0 if draw.step == bad else value

    terms = {"denoise": xhat.Term(xhat.Denoising(xhat.V)), "other": xhat.Term(xhat.ImageLoss(breaks), weight=0.01)}
    objective = xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), terms)
    muon = OptimizerConfig(muon_lr=0.02)
    return xhat.fit(objective, DATA, run, optimizer=muon, ema=0.1, **{**HOW, **how})


def test_the_same_bits_come_out(tmp_path, monkeypatch):
    trained(tmp_path / "plain")
    with monkeypatch.context() as patched:
        behind = late(patched)
        trained(tmp_path / "late")
    assert max(behind) == 2
    for name in ("ema.safetensors", "checkpoint-00000012.safetensors"):
        plain, found = (load_file(tmp_path / run / name) for run in ("plain", "late"))
        timed = [key for key in plain if "log" in key]
        assert states_equal({k: v for k, v in plain.items() if k not in timed}, {k: found[k] for k in plain if k not in timed})


@pytest.mark.parametrize("every", [1, 3, 8, 100])
def test_a_step_that_is_not_finite_is_said_and_kept_as_ever(every, tmp_path, monkeypatch):
    """Whether it becomes known by the next step, or because a state is due after it."""
    said = {}
    for name in ("plain", "late"):
        with monkeypatch.context() as patched:
            if name == "late":
                late(patched)
            with pytest.raises(RunError, match=f"not finite at step {BAD}") as raised:
                trained(tmp_path / name, BAD, checkpoint_every=every)
            said[name] = str(raised.value).replace(str(tmp_path / name), "RUN")
    assert said["late"] == said["plain"]
    kept = [load_file(tmp_path / name / f"not-finite-{BAD:08d}.safetensors") for name in ("plain", "late")]
    assert states_equal(*kept)
    files = [sorted(file.name for file in (tmp_path / name).glob("checkpoint-*")) for name in ("plain", "late")]
    assert files[0] == files[1]


def test_optimizers_do_nothing_where_they_are_told(tmp_path):
    """AdamW and Muon: weights, moments and numbers of steps; told 0, they do what they do otherwise."""
    ends = {}
    for told in (None, 0.0, 1.0):
        torch.manual_seed(0)
        network = xhat.UNet(widths=(8, 8), blocks=(1, 1), embedding=8, size=4)
        optimizers = build_optimizers(network, OptimizerConfig(muon_lr=0.02))
        assert len(optimizers) == 2
        for step in range(3):
            for p in network.parameters():
                p.grad = torch.full_like(p, torch.nan) if told and step == 1 else torch.full_like(p, 0.1 * (step + 1))
            for optimizer in optimizers:
                optimizer.found_inf = None if told is None else torch.tensor(float(told and step == 1))
                optimizer.step()
            if told and step < 2:
                ends[told, step] = content(network, optimizers)
        ends[told] = content(network, optimizers)
    assert all(torch.equal(a, b) for a, b in zip(ends[1.0, 0], ends[1.0, 1], strict=True))
    torch.testing.assert_close(ends[0.0], ends[None], rtol=1e-6, atol=1e-8)


def content(network, optimizers):
    states = [v for o in optimizers for s in o.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [x.detach().clone() for x in (*network.parameters(), *states)]
