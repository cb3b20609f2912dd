"""A training step waits for no GPU, seen on one that is not there (tests/fake_gpu.py); and whoever waits is caught."""

from pathlib import Path

from helpers import process

QUIET = ("denoise", "smooth", "chain", "rolled", "held", "shared", "free", "near", "perturbed")
CAUGHT = {"read": "_local_scalar_dense", "chosen": "index.Tensor", "fetched": "gpu:0 to cpu", "sent": "cpu to gpu:0"}


def test_no_step_waits_for_the_gpu():
    """Loss, gradients, clipping, AdamW, Muon, the average, whether all was finite; terms of images, rollouts and chains."""
    job = process(launcher=("-W", "ignore", str(Path(__file__).with_name("gpu_worker.py"))))
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    found = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert {name: int(found[name]) > 100 for name in QUIET} == dict.fromkeys(QUIET, True)
    assert all(where in found[f"{name}:"] for name, where in CAUGHT.items()), out
