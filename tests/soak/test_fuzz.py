"""Random input, in thousands by `make soak`: one line each; no traceback, no hang, no code, no gigabytes."""

import gzip
import json
import random
import resource
import shutil
import string
import struct
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from helpers import TINY, write_digits, xhat
from xhat.config.build import build_denoiser, build_objective, build_sampling
from xhat.config.config import to_values
from xhat.config.parsing import config_of
from xhat.config.presets import preset_names
from xhat.config.yaml_files import parse_yaml
from xhat.data.load import load as load_data
from xhat.data.shape import DataShape
from xhat.errors import XhatError
from xhat.files.tensors import read_tensors, write_tensors
from xhat.runs.load import load
from xhat.runs.places import WEIGHTS
from xhat.studies.read import read_study
from xhat.studies.study import study_from_file

SHAPE = DataShape(1, 8, 4)
VALUES = [
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "x",
    "null",
    "~",
    [],
    {},
    [1, [2]],
    {"a": {}},
]
VALUES += [
    "denoising()",
    "unet(",
    "dit(depth=0)",
    "linear_beta(1)",
    "min_snr(min_snr)",
    "\x00",
    "é" * 50,
    {"class_path": "os.system"},
]
WORDS = [
    "denoising",
    "unet",
    "v",
    "x0",
    "min_snr",
    "image_loss",
    "full_chain",
    "total_variation",
    "ddim",
    "last",
    "p2",
    "edm",
    "flow",
]
WORDS += [
    "linear_beta",
    "cosine",
    "uniform",
    "adaptive",
    "masked",
    "every",
    "dual_ascent",
    "learned_uncertainty",
    "product",
    "ssim",
]


def nested(rng, depth=3):
    """An expression that may mean something."""
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(
            [rng.choice(WORDS), str(rng.choice([0, 1, -1, 0.5, 1e9, 10**12])), "'a'", "None", "(1, 2)", "()", "[", "x=1"]
        )
    inner = ", ".join(rng.choice(["", f"{rng.choice(WORDS)}="]) + nested(rng, depth - 1) for _ in range(rng.randrange(4)))
    return f"{rng.choice(WORDS)}({inner})"


def mutated(data, rng):
    """Bytes with a few others in their place."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(4)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            del data[place : place + rng.randrange(1, 40)]
        else:
            data[place:place] = data[rng.randrange(len(data) + 1) :][:40]
    return bytes(data)


def changed(values, rng):
    """Nested values of which some are others."""
    if isinstance(values, dict):
        found = {key: changed(value, rng) if rng.random() < 0.9 else rng.choice(VALUES) for key, value in values.items()}
        if rng.random() < 0.1:
            found["".join(rng.choices(string.printable, k=3))] = rng.choice(VALUES)
        return {key: value for key, value in found.items() if rng.random() < 0.97}
    if isinstance(values, str) and rng.random() < 0.15:
        return nested(rng)
    return rng.choice(VALUES) if rng.random() < 0.05 else values


def build(values):
    config = config_of(values)
    denoiser = build_denoiser(config, SHAPE)
    build_objective(config, denoiser)
    build_sampling(config.sampling, denoiser.schedule)


@pytest.fixture(scope="module")
def configs():
    from xhat.config.parsing import read_config, recipe_path

    return [to_values(read_config(recipe_path(name))) for name in preset_names()]


def of_config(rng, folder, configs):
    build(changed(rng.choice(configs), rng))


def of_yaml(rng, folder, configs):
    text = mutated(yaml.safe_dump(rng.choice(configs)).encode(), rng).decode("utf-8", "replace")
    values = parse_yaml(text, "fuzz.yaml")
    if isinstance(values, dict):
        build(values)


def of_expression(rng, folder, configs):
    key = rng.choice(["network", "schedule", "target", "variance", "times", "time_input", "loss", "weight", "when"])
    text = nested(rng)
    build({key: text} if key not in ("loss", "weight", "when") else {"terms": {"a": {"loss": "denoising()", key: text}}})


def of_data(rng, folder, configs):
    kind = rng.choice(["npz", "npy", "idx", "idx.gz", "png"])
    path = folder / f"data.{kind}"
    pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    if kind == "png":
        (folder / "images").mkdir(exist_ok=True)
        path = folder / "images" / "a.png"
        Image.fromarray(pixels[0]).save(path)
    elif kind in ("npz", "npy"):
        np.savez_compressed(path, images=pixels, labels=np.arange(6)) if kind == "npz" else np.save(path, pixels)
    else:
        raw = b"\0\0\x08\x03" + struct.pack(">3I", 6, 8, 8) + pixels.tobytes()
        path.write_bytes(gzip.compress(raw) if kind == "idx.gz" else raw)
    path.write_bytes(mutated(path.read_bytes(), rng))
    load_data(str(path.parent if kind == "png" else path))


def of_weights(rng, folder, configs):
    path = folder / WEIGHTS
    good = (folder.parent / "good.safetensors").read_bytes()
    if rng.random() < 0.5:
        path.write_bytes(mutated(good[:2000], rng) + good[2000:])
    else:
        (folder / "t").write_bytes(good)
        metadata, tensors = read_tensors(folder / "t")
        key = rng.choice(list(metadata))
        text = metadata[key]
        metadata[key] = json.dumps(changed(json.loads(text), rng)) if text[:1] in "{[" else str(rng.choice(VALUES))
        write_tensors(path, tensors, metadata)
    load(path)


def of_study(rng, folder, configs):
    values = {
        "study": {"changes": {"a": {"terms.x.weight": 2}, "b": {}}, "base": "mnist", "seeds": [0, 1]},
        "failed": {"a": {"0": "x"}},
    }
    (folder / "study.json").write_bytes(mutated(json.dumps(values).encode(), rng))
    (folder / "study.yaml").write_text(yaml.safe_dump(changed(values["study"], rng)))
    for read in (lambda: study_from_file(folder / "study.json")[0], lambda: read_study(folder / "study.yaml")):
        try:
            study = read()
        except XhatError:
            continue
        for change in study.changes:
            study.config(change, 0)


def of_diffusers(rng, folder, configs):
    from xhat.pipelines.diffusers_folder import load_diffusers

    good = folder.parent / "pipeline"
    if not good.exists():
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        size = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
        blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
        DDPMPipeline(UNet2DModel(**size, **blocks), DDPMScheduler()).save_pretrained(good)
    copy = shutil.copytree(good, folder / "pipeline", dirs_exist_ok=True)
    name = rng.choice(["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
    text = (good / name).read_text()
    edited = (
        json.dumps(changed(json.loads(text), rng))
        if rng.random() < 0.6
        else mutated(text.encode(), rng).decode("utf-8", "replace")
    )
    (copy / name).write_text(edited)
    load_diffusers(copy)


KINDS = {f.__name__: f for f in (of_config, of_yaml, of_expression, of_data, of_weights, of_study, of_diffusers)}
HOURS = {
    "of_config": 3000,
    "of_yaml": 2000,
    "of_expression": 2000,
    "of_data": 1500,
    "of_weights": 800,
    "of_study": 500,
    "of_diffusers": 200,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_random_input_is_an_error_in_one_line(kind, tmp_path, configs, tiny_run, request):
    (tmp_path / "good.safetensors").write_bytes((tiny_run / WEIGHTS).read_bytes())
    (tmp_path / "work").mkdir()
    wrong, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(HOURS[kind] if request.config.getoption("--soak") else 25):
        start = time.monotonic()
        try:
            KINDS[kind](random.Random(f"{kind} {number}"), tmp_path / "work", configs)
        except XhatError as error:
            if "\n" in str(error) or not str(error):
                wrong.append((number, f"not one line: {error!r}"))
        except Exception as error:
            wrong.append((number, f"{type(error).__name__}: {error}"[-300:]))
        if time.monotonic() - start > 10 and number:  # the first of them imports what it needs
            wrong.append((number, "takes more than ten seconds"))
    assert wrong == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000


OPTIONS = [
    "--optimizer.lr",
    "--network",
    "--terms",
    "--terms.a.loss",
    "--run",
    "--resume",
    "--data",
    "--sampling.steps",
    "--labels",
    "--x",
]
OPTIONS += [
    "--optimizer",
    "--config",
    "--seed",
    "--use",
    "--init",
    "--",
    "-h2",
    "--=",
    "--terms.",
    "--max_steps=",
    "mnist",
    "\x00",
    "-",
]


@pytest.mark.filterwarnings("ignore")
def test_random_command_lines(tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "digits.npz")
    wrong = []
    for number in range(500 if request.config.getoption("--soak") else 25):
        rng = random.Random(number)
        words = [rng.choice(OPTIONS) if rng.random() < 0.6 else str(rng.choice(VALUES)) for _ in range(rng.randrange(1, 7))]
        command = rng.choice(["train", "sample", "evaluate", "inspect", "gradients", "compare", "report"])
        more = [*TINY, "--max_steps", 0] if command == "train" else ["--none"]
        try:
            code, _, err = xhat(command, *words, *more, capsys=capsys)
        except SystemExit:
            continue  # --help
        if code != 2 or "Traceback" in err or "error of xhat's own" in err:
            wrong.append((command, words, code, err[-200:]))
    assert wrong == []
