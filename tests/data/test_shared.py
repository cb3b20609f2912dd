"""Images that are loaded into memory are there once for all processes of a machine."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xhat.data.load import load

pytestmark = pytest.mark.slow
CHILD = """
import json, os, sys
def own():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
import torch
from xhat.data.load import load
from xhat.distributed import end_one_of_several
before = own()
images = load(sys.argv[1])
found = {"rank": os.environ["RANK"], "mark": images.fingerprint(), "labels": images.labels_fingerprint(), "own": own() - before}
open(f"{sys.argv[2]}/{found['rank']}.json", "w").write(json.dumps(found))
torch.distributed.barrier()
end_one_of_several(0)
"""


def two(tmp_path, data):
    program = tmp_path / "child.py"
    program.write_text(CHILD)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(program), str(data), str(tmp_path)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=200)
    return done, [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="processes see each other's files in /proc")
def test_two_processes_share_them(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (200_000, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=values, labels=np.arange(len(values)) % 10)
    images = load(str(tmp_path / "a.npz"))
    done, found = two(tmp_path, tmp_path / "a.npz")
    assert done.returncode == 0, done.stderr
    assert {row["rank"] for row in found} == {"0", "1"}
    assert {(row["mark"], row["labels"]) for row in found} == {(images.fingerprint(), images.labels_fingerprint())}
    assert all(row["own"] < 0.5 * values.nbytes for row in found)


@pytest.mark.parametrize("kind", ["npy", "missing", "damaged"])
def test_files_that_are_mapped_and_mistakes(tmp_path, kind):
    path = tmp_path / "a.npy"
    if kind != "missing":
        np.save(path, np.full((64, 8, 8), 200, np.uint8))
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:90])
    done, found = two(tmp_path, path)
    if kind == "npy":
        assert {row["mark"] for row in found} == {load(str(path)).fingerprint()}
        return
    assert found == []
    line = "does not exist" if kind == "missing" else "it is damaged, cut short"
    assert done.stderr.count(line) >= 2, done.stderr
    assert "Connection closed by peer" not in done.stderr
