"""Killed, or without a disk, wherever something is written or read: nothing is lost, and a repeated command completes.

The everyday suite takes a few points of each kind; `make soak` takes every one of them.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import TINY, xhat

HERE = Path(__file__).parent
KILLED, KILLED_HALF_WAY = 0, -1
FAULTS = {
    "create": (errno.ENOSPC, errno.EROFS, errno.EMFILE),
    "open": (errno.EIO, errno.ESTALE, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EIO),
    "sync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.EROFS),
    "unlink": (errno.EIO,),
    "link": (errno.ENOSPC, errno.EIO),
    "mkdir": (errno.ENOSPC,),
    "read": (errno.EIO, errno.ESTALE),
}
KILLS = {"create": (KILLED,), "write": (KILLED, KILLED_HALF_WAY), "sync": (KILLED,), "rename": (KILLED,)}
KILLS |= {"unlink": (KILLED,), "link": (KILLED,), "mkdir": (KILLED,)}
LEARNED = (
    *("--times", "loss_second_moment(history=1)", "--schedule", "linear_beta(4)", "--accumulate", 2),
    *("--terms.chain.loss", "image_loss(total_variation, full_chain(ddpm, 3, random_last(3)))"),
    *("--terms.chain.weight", "dual_ascent(0.1)"),
    *("--terms.flat.loss", "image_loss(laplacian)", "--terms.flat.weight", "gradient_ratio(0.1, 2)"),
)
TRAIN = (*TINY, *LEARNED, "--checkpoint_every", 2, "--sample_every", 2, "--log_every", 3)


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The preloaded library, where a compiler and Linux are."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("needs Linux and gcc, to put faults between Python and the system")
    path = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@pytest.fixture(scope="session")
def jobs(tmp_path_factory, digits):
    """Each command that writes: what lies there before, and how it is called."""
    places = tmp_path_factory.mktemp("points")
    nothing, half, whole = (places / name for name in ("nothing", "half", "whole"))
    nothing.mkdir()
    train = ("train", "mnist", "--data", digits, *TRAIN)
    assert xhat(*train, "--run", half / "run", "--max_steps", 2)[0] == 0
    assert xhat(*train, "--run", whole / "run", "--max_steps", 4)[0] == 0
    run = places / "work" / "run"
    resume = ("train", "--run", run, "--resume", "--max_steps", 5)
    small = ("--n", 4)

    def job(template, command, again=(), compare_out=False):
        command, again = ([str(word) for word in words] for words in (command, again or command))
        return {"template": str(template), "command": command, "resume": again, "compare_out": compare_out}

    return {
        "train": job(nothing, (*train, "--run", run, "--max_steps", 5), resume),
        "resume": job(half, resume),
        "sample": job(whole, ("sample", run, *small, "--out", places / "work" / "s.npz")),
        "bound": job(whole, ("evaluate", run, "--bound", *small, "--json"), compare_out=True),
        "report": job(whole, ("report", run, *small, "--out", places / "work" / "page.html")),
        "gradients": job(whole, ("gradients", run, *small, "--chain", 2, "--json"), compare_out=True),
    }


def served(shim, job, work, points):
    """What points.py found."""
    places = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    asked = json.dumps({**job, "work": str(work), "points": points})
    command = [sys.executable, HERE / "points.py"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def chosen(counts, faults, every, rng):
    """Points: all of them, or of each kind of fault one."""
    for kind, numbers in faults.items():
        for number in numbers:
            places = range(counts[kind])
            for at in places if every else rng.sample(places, min(1, len(places))):
                yield [kind, at, number]


@pytest.mark.parametrize("faults", [KILLS, FAULTS], ids=["killed", "failing"])
@pytest.mark.parametrize("name", ["train", "resume", "sample", "bound", "report", "gradients"])
def test_every_point(name, faults, shim, jobs, request):
    every = request.config.getoption("--soak")
    everyday = (name, faults) in (("resume", KILLS), ("sample", FAULTS))
    if not everyday and not (every or os.environ.get("CI") or request.config.getoption("--slow")):
        pytest.skip("takes minutes: run with --slow (CI runs it)")
    job = jobs[name]
    work = Path(job["template"]).parent / "work"
    counts = served(shim, job, work, [])["counts"]
    points = list(chosen(counts, faults, every, random.Random(name)))
    found = served(shim, job, work, points)["wrong"]
    print(f"{name}: {len(points)} points of {counts}")
    assert found == {}, f"{len(found)} of {len(points)} points"
