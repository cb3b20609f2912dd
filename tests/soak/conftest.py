"""What is killed, broken and run twice: each command that writes, and what lies there before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers import TINY, xhat

HERE = Path(__file__).parent
LEARNED = (
    *("--times", "loss_second_moment(history=1)", "--schedule", "linear_beta(4)", "--accumulate", 2),
    *("--terms.chain.loss", "image_loss(total_variation, full_chain(ddpm, 3, random_last(3)))"),
    *("--terms.chain.weight", "dual_ascent(0.1)"),
    *("--terms.flat.loss", "image_loss(laplacian)", "--terms.flat.weight", "gradient_ratio(0.1, 2)"),
)
TRAIN = (*TINY, *LEARNED, "--checkpoint_every", 2, "--sample_every", 2, "--log_every", 3)
STUDY = {
    "base": "mnist",
    "common": {
        "network": "unet(widths=(8, 8), blocks=(1, 1), embedding=16)",
        **{"batch_size": 16, "log_every": 1, "compile": "off", "checkpoint_every": 2, "max_steps": 4, "sampling.steps": 3},
    },
    "changes": {"a": None, "b": {"schedule": "flow"}},
    "samples": 4,
}


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The preloaded library, where a compiler and Linux are."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("needs Linux and gcc, to put faults between Python and the system")
    path = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@pytest.fixture(scope="session")
def places(tmp_path_factory, digits):
    """Folders to start from: nothing, half a run, a whole one, half a study; all stand for `work` beside them."""
    places = tmp_path_factory.mktemp("points")
    (places / "nothing").mkdir()
    train = ("train", "mnist", "--data", digits, *TRAIN)
    assert xhat(*train, "--run", places / "half" / "run", "--max_steps", 2)[0] == 0
    assert xhat(*train, "--run", places / "whole" / "run", "--max_steps", 4)[0] == 0
    (places / "study.yaml").write_text(yaml.safe_dump(STUDY | {"common": STUDY["common"] | {"data": str(digits)}}))
    return places


@pytest.fixture(scope="session")
def commands(places, digits):
    """How each command is called, on what is below `work`."""
    work = places / "work"
    run, small = work / "run", ("--n", 4)
    return {
        "train": ("train", "mnist", "--data", digits, *TRAIN, "--run", run, "--max_steps", 5),
        "resume": ("train", "--run", run, "--resume", "--max_steps", 5),
        "sample": ("sample", run, *small, "--out", work / "s.npz"),
        "evaluate": ("evaluate", run, *small, "--images", 4, "--json"),
        "bound": ("evaluate", run, "--bound", *small, "--json"),
        "report": ("report", run, *small, "--out", work / "page.html"),
        "gradients": ("gradients", run, *small, "--chain", 2, "--json"),
        "inspect": ("inspect", run, "--picture", work / "inspect.png"),
        "compare": ("compare", places / "study.yaml", "--out", work / "out", "--jobs", 2),
        "report of a study": ("report", work / "out", *small, "--out", work / "out" / "report.html"),
        "resume in a study": ("train", "--run", work / "out" / "a" / "seed-0", "--resume", "--max_steps", 5),
    }


@pytest.fixture(scope="session")
def jobs(places, commands):
    """Commands to be killed and broken, by name."""

    def job(name, template, again=None, compare_out=False, timed=()):
        command, again = ([str(word) for word in commands[key]] for key in (name, again or name))
        said = {"compare_out": compare_out, "timed": timed}
        return {"template": str(places / template), "command": command, "resume": again, **said}

    return {
        "train": job("train", "nothing", again="resume"),
        "resume": job("resume", "half"),
        "sample": job("sample", "whole"),
        "bound": job("bound", "whole", compare_out=True),
        "report": job("report", "whole"),
        "gradients": job("gradients", "whole", compare_out=True),
        "compare": job("compare", "nothing", timed=("seed-0.log", "report.html")),
    }


@pytest.fixture(scope="session")
def served(shim, places):
    """What points.py makes of a job."""

    def serve(job):
        paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        asked = json.dumps({**job, "work": str(places / "work")})
        done = subprocess.run(
            [sys.executable, HERE / "points.py"], input=asked, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return serve
