"""What data take of the memory, in processes of their own: files that are larger than it, and what is loaded into it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system says it in /proc"),
]

COMMON = """
import json, resource, sys, threading
def now():
    rows = dict(line.split(":") for line in open("/proc/self/status") if line.startswith(("Rss", "Vm")))
    return {name: int(value.split()[0]) * 1024 for name, value in rows.items()}
"""
TRAIN = (
    COMMON
    + """
import torch
from xhat.config.config import Config
from xhat.config.build import build_denoiser, build_objective
from xhat.config.data import build_data
from xhat.rng import Shard
data, limit, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (now()["VmData"] + limit,) * 2)
before = now()
config = Config(data=data, network="unet(widths=(8, 8), blocks=(1, 1), embedding=16)")
found = build_data(config)
objective = build_objective(config, build_denoiser(config, found.shape)).train()
optimizer, seen = torch.optim.AdamW(objective.parameters()), []
for step in range(steps):
    x0 = found.train.get(step, Shard(0, 64), 64).x0
    loss = objective((x0.float() / 127.5 - 1) if x0.dtype == torch.uint8 else x0, step=step)["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    seen.append(now())
print(json.dumps([before, *seen]))
"""
)
LOAD = (
    COMMON
    + """
from xhat.data.load import load
before = now()
images = load(sys.argv[1])
mark = images.fingerprint()
print(json.dumps([before, now()]))
"""
)
MIB = 2**20


def child(script, *args):
    """What it has measured."""
    found = subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])


def sparse(path, shape, dtype="uint8"):
    """A .npy whose values are holes in the file: all of its size, and nothing on the disk but some samples."""
    values = np.lib.format.open_memmap(path, "w+", dtype, shape)
    values[:100] = np.random.default_rng(0).integers(0, 256, (100, *shape[1:])) if dtype == "uint8" else 1.0
    values.flush()
    return path


def test_three_gigabytes_train_in_less_than_one(tmp_path):
    path = sparse(tmp_path / "a.npy", (4_100_000, 28, 28))
    assert path.stat().st_size > 3e9
    before, *seen = child(TRAIN, path, 0, 30)
    assert max(row["RssAnon"] for row in seen) < 1e9
    assert max(row["RssAnon"] for row in seen) - before["RssAnon"] < 300 * MIB


@pytest.mark.parametrize("kind", ["images", "fields"])
def test_ten_times_a_limit_trains_and_stays_flat(tmp_path, kind):
    limit = 250 * MIB  # what the training itself may take
    if kind == "images":
        path = sparse(tmp_path / "a.npy", (10 * limit // 784 + 1, 28, 28))
        data = str(path)
    else:
        path = sparse(tmp_path / "a.npy", (10 * limit // (4 * 784) + 1, 1, 28, 28), "float32")
        data = f"fields({path}, units=given(0.0, 1.0))"
    assert path.stat().st_size > 10 * limit
    _, *seen = child(TRAIN, data, limit, 60)
    flat = [row["VmRSS"] for row in seen[20:]]
    assert max(flat) - min(flat) < 50 * MIB
    # and the limit is one: what is loaded whole does not fit
    np.savez(tmp_path / "b.npz", np.zeros((limit // 784 + 1, 28, 28), np.uint8))
    found = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "b.npz"), str(limit), "1"], capture_output=True, text=True
    )
    assert found.returncode != 0
    assert "MemoryError" in found.stderr or "not enough memory" in found.stderr or "allocate" in found.stderr


def test_what_is_loaded_peaks_at_its_size(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (500_000, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=values, labels=np.arange(len(values)) % 10)
    before, after = child(LOAD, tmp_path / "a.npz")
    assert after["VmHWM"] - before["VmRSS"] < 1.2 * values.nbytes
    assert after["RssAnon"] - before["RssAnon"] > 0.9 * values.nbytes  # that it is there
