"""Bits flipped, pages zeroed, tails cut: whatever is read back says so. A few of each here; `make soak` takes hundreds."""

import os
import random
import shutil
import warnings

import pytest
import torch

import xhat as library
from helpers import TINY, write_digits, xhat
from xhat.bound.density import cells
from xhat.bound.estimate import Progress
from xhat.errors import XhatError
from xhat.files.values import read_values
from xhat.report.measured import _Stored
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.environment import read_environment
from xhat.runs.load import load
from xhat.runs.metrics import Mark, read_metrics, restore_metrics
from xhat.runs.objects import read_objects
from xhat.runs.progress_file import ProgressFile
from xhat.runs.recipe import read_run_config
from xhat.runs.used import used_by
from xhat.studies.study import Study, study_from_file, study_to_file

OWN = """import xhat

@xhat.register
def brighter(images):
    return images.flatten(1).mean(1)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All that is read back, in one folder."""
    folder = tmp_path_factory.mktemp("written")
    run, own, digits = folder / "run", folder / "own.py", write_digits(folder / "digits.npz")
    own.write_text(OWN)
    options = ("--terms.own.loss", "image_loss(brighter)", "--use", own)
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 8, *TINY, *options)[0] == 0
    assert xhat("report", run, "--n", 4, "--out", folder / "page.html", "--use", own)[0] == 0
    study_to_file(folder / "study.json", Study({"a": {}, "b": {"seed": 1}}, base="mnist"), {"a": {0: "why"}})
    ProgressFile(folder / "p.safetensors", [1]).write(
        Progress(None, torch.ones(3, 3).double(), torch.ones(len(cells(30))).double())
    )
    net = torch.nn.Module()
    net.weight, net.forward = torch.nn.Parameter(torch.ones(1)), lambda z, t: net.weight * z
    objective = library.Objective(library.Denoiser(net, library.Cosine(), library.V), {"a": library.Term(library.Denoising())})
    library.fit(objective, torch.randn(32, 3), folder / "objects", max_steps=2, batch_size=4, compile="off")
    return folder


def mark(run):
    return Mark(*newest_checkpoint(run)[0].state["log"]["mark"])


def noticed_rows(folder):
    """Of the metrics: by a reader, or, where a tail is missing at the end of a row, by whoever resumes."""
    read_metrics(folder / "run")
    restore_metrics(folder / "run", 8, mark(folder / "run"))


def newest(folder):
    found, damaged = newest_checkpoint(folder / "run")
    if damaged:
        warnings.warn(f"{damaged} is damaged", stacklevel=1)
    assert found is not None


def progress(folder):
    ProgressFile(folder / "p.safetensors", [1]).read(30, 8, False)


ARTEFACTS = {
    "run/checkpoint-00000008.safetensors": newest,
    "run/checkpoint-00000004.safetensors": lambda folder: newest_checkpoint_of_two(folder),
    "run/ema.safetensors": lambda folder: load(folder / "run"),
    "run/metrics.jsonl": noticed_rows,
    "run/config.yaml": lambda folder: read_run_config(folder / "run"),
    "run/environment.json": lambda folder: read_environment(folder / "run"),
    "run/used/used.json": lambda folder: used_by(folder / "run"),
    "run/measured/measured.json": lambda folder: read_values(folder / "run" / "measured" / "measured.json", _Stored),
    "study.json": lambda folder: study_from_file(folder / "study.json"),
    "objects/objects.json": lambda folder: read_objects(folder / "objects"),
    "p.safetensors": progress,
}


def newest_checkpoint_of_two(folder):
    (folder / "run" / "checkpoint-00000008.safetensors").unlink()
    newest_checkpoint(folder / "run")


def damaged(data, rng):
    """Another file of the same name."""
    kind = rng.choice(["bit", "page", "cut", "garbage"])
    place = rng.randrange(len(data))
    if kind == "bit":
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if kind == "cut":
        return data[:place]
    size = rng.choice([16, 512, 4096])
    page = bytes(len(data[place : place + size])) if kind == "page" else rng.randbytes(len(data[place : place + size]))
    return data[:place] + page + data[place + size :]


def silent(read, folder):
    """Whether a reader says nothing."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            read(folder)
        except XhatError:
            return False
    return not said


@pytest.mark.parametrize("name", ARTEFACTS)
def test_no_damage_is_silent(name, written, tmp_path, request):
    rng, count = random.Random(name), 300 if request.config.getoption("--soak") else 12
    assert silent(ARTEFACTS[name], shutil.copytree(written, tmp_path / "good")), "what is whole is read without a word"
    unnoticed = []
    for number in range(count):
        folder = tmp_path / str(number)
        shutil.copytree(written, folder, copy_function=_linked)
        path = folder / name
        good = path.read_bytes()
        path.unlink()
        path.write_bytes(bad := damaged(good, rng))
        if bad != good and silent(ARTEFACTS[name], folder) and not _same_config(name, good, bad):
            unnoticed.append(number)
        shutil.rmtree(folder)
    assert unnoticed == []


def _linked(source, target):
    os.link(source, target)


def _same_config(name, good, bad):
    """A config whose checksum alone was cut off says what it said."""
    return name.endswith("config.yaml") and good.startswith(bad) and bad.endswith(b"\n") and len(good) - len(bad) < 100
