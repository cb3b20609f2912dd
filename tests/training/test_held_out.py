"""The common scale while training: in the log, the same as measured later, without a trace in the run, and cheap."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import TINY, xhat
from xhat.config.config import Config
from xhat.data.batch import Batch
from xhat.data.parts import load_parts
from xhat.evaluation.denoising import LEVELS, denoising_error
from xhat.runs.load import load
from xhat.training.held_out import IMAGES, STRIDE, HeldOut


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(tmp_path, name, *more):
    assert xhat("train", "mnist", "--run", tmp_path / name, "--max_steps", 7, *TINY, *more)[0] == 0
    return tmp_path / name


def test_measurements_stand_next_to_the_raw_loss(tmp_path):
    run = train(tmp_path, "run", "--eval_every", 3)
    found = [row["step"] for row in rows(run) if "eval/bits_per_dim" in row]
    assert found == [3, 6, 7]
    last = rows(run)[-1]
    assert {"loss", "terms", "eval/bits_per_dim_se", "eval/x0_error/logsnr=-8", "eval/x0_error/logsnr=8"} <= last.keys()
    assert last["progress"] == 1
    trained = load(run)
    images = load_parts("mnist")[1].chosen(torch.arange(IMAGES))
    x0 = images.pixels.float() / 127.5 - 1
    again = denoising_error(trained.denoiser, x0, {"label": images.labels}, LEVELS[::STRIDE], batch=IMAGES)
    assert last["eval/bits_per_dim"] == pytest.approx(again.bits_per_dim, rel=1e-4)
    assert [last[f"eval/x0_error/logsnr={level:g}"] for level in again.logsnr] == pytest.approx(again.x0_error, rel=1e-4)


def test_measuring_leaves_no_trace(tmp_path):
    """A network with dropout in effect, and a run that measures at every step: the same weights as one that never does."""
    often, never = (train(tmp_path, n, "--eval_every", e) for n, e in (("often", 1), ("never", 0)))
    a, b = load_file(often / "ema.safetensors"), load_file(never / "ema.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any("eval/bits_per_dim" in row for row in rows(never))


@pytest.mark.parametrize(("batch", "log_every"), [(16, 1), (64, 20), (128, 20), (1024, 50)])
def test_the_default_is_a_small_share_of_the_network_calls(batch, log_every):
    """Counted in forward passes of an image, a training step being three: at most 2 %."""
    held = HeldOut(Config(batch_size=batch, log_every=log_every), Batch(torch.zeros(IMAGES, 1, 8, 8)))
    assert held.every % log_every == 0
    assert IMAGES * len(LEVELS[::STRIDE]) <= 0.02 * 3 * batch * held.every
    assert held.due(held.every, False)
    assert held.due(1, True)
    assert not held.due(held.every + 1, False)


def test_own_images_are_held_out_and_measured(tmp_path, capsys):
    """400 images of one's own: 20 are set aside; evaluate measures on those, and says so."""
    import numpy as np

    np.savez(tmp_path / "own.npz", images=np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8))
    run = train(tmp_path, "run", "--data", tmp_path / "own.npz", "--labels", "false")
    assert "eval/bits_per_dim" in rows(run)[-1]
    code, out, _ = xhat("evaluate", run, "--n", 4, "--json", capsys=capsys)
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert (found["denoising"]["images"], found["denoising"]["images_are"]) == (20, "held out")
    assert (found["reference"], found["reference_is"]) == (380, "training images")
