"""What nobody can mean is refused before anything of it is allocated: in seconds, in one line, with little memory."""

import gzip
import itertools
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from helpers import TINY, write_digits, xhat
from xhat import budgets
from xhat.config.expressions import evaluate
from xhat.config.names import OF_TERMS
from xhat.config.yaml_files import parse_yaml
from xhat.data.load import load
from xhat.errors import BudgetError, ConfigError, DataError, TooLargeError

LETTERS = "abcdefghij"
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise(LETTERS)
)
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in itertools.pairwise(LETTERS))


@pytest.fixture(autouse=True)
def cheap():
    """Whatever a test does takes less than ten seconds and little more memory than was taken before."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "KiB"


@pytest.mark.parametrize(
    "text",
    [
        *(ALIASES, MERGES, "[" * 100_000, "{" * 100_000, "- " * 100_000, "a: &a [*a]", "a: 1\n" * 300_000),
        "".join(f"a{i}: 1\n" for i in range(30_000)),
        "\n".join(" " * i + "a:" for i in range(1000)),
    ],
    ids=["aliases", "merges", "brackets", "braces", "dashes", "itself", "letters", "values", "indents"],
)
def test_texts_that_would_take_a_readers_memory_or_stack(text, tmp_path, capsys):
    with pytest.raises(TooLargeError, match=r"nested more than|more than 20,000 values|stands for itself|larger than"):
        parse_yaml(text, "x.yaml")
    (tmp_path / "x.yaml").write_text(text)
    code, _, err = xhat("train", tmp_path / "x.yaml", "--run", tmp_path / "run", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert len(err) < 400
    if "\n" in text or text[0] in "[{":
        code, _, err = xhat("train", "mnist", "--run", tmp_path / "run", f"--terms={text}", capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)


def test_texts_of_an_honest_size_are_read():
    assert len(parse_yaml(yaml.safe_dump({f"a{i}": [1, {"b": 2}] for i in range(1000)}), "x")) == 1000
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "x")["b"] == {"x": 1, "y": 2}


TOO_MUCH = ["(" * 15_000, "-" * 15_000 + "1", "a" + ".a" * 9000, "f(" * 150 + ")" * 150, "[" * 19_000, "x" * 30_000]
TOO_MUCH += [
    "1" * 10_000,
    "not " * 4000 + "x",
    "lambda: " * 1000 + "1",
    "a+" * 9000 + "a",
    "f(" + "a=1," * 4000 + ")",
    "f'{" * 50,
]


@pytest.mark.parametrize("text", TOO_MUCH, ids=lambda text: text[:6].strip() + str(len(text)))
def test_expressions_that_no_parser_can_be_trusted_with(text):
    with pytest.raises(ConfigError):
        evaluate(text, OF_TERMS)


NETWORK = "unet(widths=(8, 8), blocks=(1, 1), embedding=16)"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("network", "unet(widths=(8, 8), blocks=(1000000, 1))", "blocks must be at most 1,000"),
        ("network", "unet(widths=(10000000, 8), blocks=(1, 1))", "widths must be at most 1,000,000"),
        ("network", "unet(widths=(60000, 60000), blocks=(1, 1))", "parameters: that is"),
        ("network", "unet(embedding=2000000000)", "embedding must be at most 1,000,000"),
        ("network", "dit(depth=1000000)", "depth must be at most 1,000"),
        ("network", "dit(width=120000, heads=3)", "width must be at most 65,536"),
        ("network", "level_posterior(features=1000)", "features must be at most 256"),
        ("schedule", "linear_beta(1000000000)", "steps must be at most 1,000,000"),
        ("schedule", "cosine_beta(99999999999999)", "steps must be at most 1,000,000"),
        ("schedule", "learned(features=1000000000)", "features must be at most 1,000,000"),
        ("times", "loss_second_moment(history=1000000)", "history must be at most 1,000"),
        ("times", "adaptive(bins=1000000)", "bins must be at most 100,000"),
        ("sampling.steps", 2_000_000_000, "sampling.steps must be in [1, 1e+06]"),
        ("terms.x.loss", "image_loss(total_variation, full_chain(ddim, 100000))", "steps must be at most 10,000"),
        ("batch_size", 10**12, "lower batch_size, or raise accumulate"),
        ("batch_size", 2**53, "lower batch_size, or raise accumulate"),
        ("image_size", 4096, "image_size"),
        ("image_size", 10**9, "image_size must be in [4, 4096]"),
        ("max_steps", 10**30, "max_steps must be at least 1"),
    ],
)
def test_sizes_in_a_config(option, value, said, tmp_path, digits, capsys, monkeypatch):
    monkeypatch.setattr(budgets, "memory", lambda: 4 * budgets.GIB)
    data = write_digits(tmp_path / "many.npz", 4000) if option == "image_size" else digits
    command = ("train", "mnist", "--data", data, "--run", tmp_path / "run", *TINY, f"--{option}", value)
    code, _, err = xhat(*command, capsys=capsys)
    assert code == 2
    assert said in err.splitlines()[-1], err
    assert not (tmp_path / "run").exists()


def test_more_samples_than_there_is_memory(tiny_run, tmp_path, capsys):
    code, _, err = xhat("sample", tiny_run, "--n", 10**13, "--out", tmp_path / "s.npz", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "10,000,000,000,000 samples (1, 8, 8): that is" in err
    assert "draw fewer at a time" in err


def idx(*shape, body=b""):
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (idx(2**32 - 1, 2**32 - 1, 2**32 - 1), "GiB of memory"),
        (idx(60_000, 1000, 1000, body=b"x"), "GiB of memory"),
        (idx(1000, 28, 28, body=b"x" * 100), "its header announces 784,000 values, it holds 100"),
        (idx(2, 2, 2, body=b"x" * 100), "it holds more than 8"),
        (idx(2), "holds 0"),
        (b"\0\0\x08\x03\0\0", "its header announces 3 axes"),
        (gzip.compress(idx(2, 8, 8, body=b"x" * 128), mtime=0)[:-9], "cut short"),
        (gzip.compress(idx(2, 8, 8, body=b"x" * 128 + bytes(10**7)), mtime=0), "it holds more than 128"),
    ],
)
def test_idx_headers(content, said, tmp_path):
    (tmp_path / "data.idx").write_bytes(content)
    with pytest.raises((DataError, BudgetError), match=said):
        load(str(tmp_path / "data.idx"))


def test_a_gzip_file_is_unpacked_no_further_than_its_header_says(tmp_path, monkeypatch):
    packed = gzip.compress(idx(2, 8, 8, body=bytes(2**26)), 1)
    (tmp_path / "bomb.gz").write_bytes(packed)
    read, real = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda file, size=-1: read.append(size) or real(file, size))
    with pytest.raises(DataError, match="it holds more than 128"):
        load(str(tmp_path / "bomb.gz"))
    assert read == [4, 12, 128, 1]


def npy(shape, body=b"", dtype="|u1"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


@pytest.mark.parametrize("dtype", ["|u1", "<f8"])
@pytest.mark.parametrize("shape", ["(1000000000000,)", "(100000, 100000, 3)", "(4, 8, 8)", "(-1, 8, 8)", "(2**70,)"])
def test_npy_headers(shape, dtype, tmp_path):
    (tmp_path / "data.npy").write_bytes(npy(shape, b"x" * 100, dtype))
    with pytest.raises((DataError, BudgetError)):
        load(str(tmp_path / "data.npy"))
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", npy(shape, b"x" * 100, dtype))
    with pytest.raises((DataError, BudgetError)):
        load(str(tmp_path / "data.npz"))


def test_an_npz_that_unpacks_to_more_than_there_is_room_for(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((4000, 100, 100), np.uint8))
    monkeypatch.setattr(budgets, "memory", lambda: 64 * 2**20)
    with pytest.raises(BudgetError, match=r"zeros.npz holds 1 arrays: that is 0.1 GiB, and there are 0.1 GiB of memory"):
        load(str(tmp_path / "zeros.npz"))
    monkeypatch.undo()
    monkeypatch.setattr("xhat.data.arrays.MOST_PACKED", 2**20)
    with pytest.raises(BudgetError, match="100 times its size: save it with"):
        load(str(tmp_path / "zeros.npz"))


def test_an_image_of_too_many_pixels(tmp_path):
    """One bit a pixel: a file of 20 KB, 400 MB on a white ground."""
    Image.new("1", (11_000, 10_000)).save(tmp_path / "large.png")
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="has 110,000,000 pixels, more than 100,000,000"):
        load(str(tmp_path))


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("1073741824\n")
    monkeypatch.setattr(budgets, "CGROUPS", (tmp_path / "max", tmp_path / "none"))
    budgets.memory.cache_clear()
    assert budgets.memory() == budgets.GIB
    (tmp_path / "max").write_text("max\n")
    budgets.memory.cache_clear()
    assert budgets.memory() > budgets.GIB
    budgets.memory.cache_clear()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinities")
def test_cores_are_those_that_the_process_may_run_on():
    """As taskset, SLURM and containers say: a study's runs share these, and no more threads than these wait for each other."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from xhat.budgets import cores; print(cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "1"
    assert budgets.cores() == len(os.sched_getaffinity(0))
