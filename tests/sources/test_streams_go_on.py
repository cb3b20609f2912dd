"""A training on a stream that is killed goes on as if it had not been, to the bit."""

import io
import random
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

import xhat as package
from helpers import process, xhat
from xhat.errors import DataError
from xhat.files.tensors import read_tensors
from xhat.runs.places import checkpoints
from xhat.sources.fields import fields

NETWORK = "unet(widths=(4,), blocks=(1,), embedding=8)"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    place = tmp_path_factory.mktemp("shards")
    pixels = np.random.default_rng(0).integers(0, 256, (700, 4, 4), dtype=np.uint8)
    for shard in range(3):
        with tarfile.open(place / f"t-{shard}.tar", "w") as tar:
            for k in range(shard * 250, min(700, shard * 250 + 250)):
                file = io.BytesIO()
                Image.fromarray(pixels[k]).save(file, "PNG")
                member = tarfile.TarInfo(f"{k:04d}.png")
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)
    return f"webdataset({place / 't-{0..2}.tar'}, shuffle=100)"


def options(data, run, steps):
    own = ("--network", NETWORK, "--batch_size", 16, "--log_every", 50, "--compile", "off", "--sampling.steps", 2)
    more = ("--checkpoint_every", 40, "--sample_every", 5000, "--eval_every", 0, "--max_steps", steps, "--precision", "float32")
    return ("train", "mnist", "--data", data, "--run", run, *own, *more)


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_thousand_steps_killed_at_a_random_one(shards, tmp_path, workers):
    whole = process(*options(shards, tmp_path / "whole", 1000), "--workers", 0)
    killed = process(*options(shards, tmp_path / "killed", 1000), "--workers", workers)
    after = random.randint(2, 15)
    while killed.poll() is None and not list((tmp_path / "killed").glob("checkpoint-*")):
        time.sleep(0.05)
    time.sleep(after / 10)
    killed.kill()
    killed.communicate()
    _, err = whole.communicate(timeout=200)
    assert whole.returncode == 0, err
    assert xhat("train", "--run", tmp_path / "killed", "--resume", "--workers", workers)[0] == 0
    (_, expected), (_, found) = (read_tensors(tmp_path / name / "ema.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    apart = {name: float((expected[name] - found[name]).abs().max()) for name in expected}
    assert not any(apart.values()), apart


def test_what_was_trained_is_kept_where_the_data_change(tmp_path):
    values = np.random.default_rng(0).normal(size=(64, 1, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)

    class Changes(package.Callback):
        def step(self, at):
            if at.step == 3:
                np.save(tmp_path / "x.npy", values + 1)

    net = package.UNet(1, size=(8,), widths=(4,), blocks=(1,), embedding=8)
    objective = package.Objective(
        package.Denoiser(net, package.Cosine(), package.V), {"denoise": package.Term(package.Denoising())}
    )
    common = {"max_steps": 9, "batch_size": 8, "log_every": 1, "sampling": {"steps": 2}, "compile": "off"}
    source = fields(str(tmp_path / "x.npy"), held_out=0.0)
    with pytest.raises(DataError, match="has changed since it was opened"):
        package.fit(objective, source, tmp_path / "run", callbacks=[Changes()], workers=0, **common)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-00000003.safetensors"]
    np.save(tmp_path / "x.npy", values)
    again = fields(str(tmp_path / "x.npy"), held_out=0.0)
    done = package.fit(objective, again, tmp_path / "run", resume=True, workers=0, **common)
    assert done.step == 9
