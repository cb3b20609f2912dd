"""`xhat sample` and `xhat evaluate` on several processes: what one would have drawn and measured, nothing twice."""

import json

import numpy as np
import pytest
import torch

from helpers import TINY, process, write_digits
from xhat import distributed
from xhat.distributed import ALONE, Shares

NUMBERS = (1, 2, 3)


@pytest.mark.parametrize(("count", "n"), [(1, 5), (2, 5), (3, 5), (4, 3), (3, 0), (2, 4)])
def test_each_does_its_part_and_is_given_all(count, n, monkeypatch):
    did = []

    def together(found, group=None):
        """What the others send, who do the same at the same time."""
        first = rounds.pop(0)
        return [square(first + rank) if first + rank < n else None for rank in range(count)]

    def square(k):
        return k * k

    def work(k):
        did.append(k)
        return square(k)

    monkeypatch.setattr(distributed, "from_all", together)
    for rank in range(count):
        rounds = list(range(0, n, count))
        assert list(Shares(rank, count).map(work, range(n))) == [square(k) for k in range(n)]
    assert sorted(did) == list(range(n))


def test_all_have_equally_many_batches_to_do():
    assert [Shares(0, count).part(64, 125) for count in (1, 2, 4, 100)] == [125, 32, 16, 1]
    assert (Shares(0, 2).part(1000, 125), Shares(0, 2).part(260, 125), ALONE.part(0, 0)) == (125, 65, 1)


PARTS = """
import os
import torch
import xhat

@xhat.register
class Counted(torch.nn.Module):
    # tells of each call how many samples it had
    def __init__(self, classes: int):
        super().__init__()
        self.body = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.null = classes

    def forward(self, z, t, label=None):
        with open(os.path.join(os.environ["COUNTS"], os.environ.get("RANK", "0")), "a") as file:
            file.write(f"{len(z)}\\n")
        return self.body(z)
"""


def on(number, place, *words):
    """A command on so many processes, which count their network calls in a folder."""
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), "-m", "xhat", "--")
    place.mkdir()
    return process(*words, COUNTS=str(place), **({"launcher": several} if number > 1 else {}))


def counted(place):
    """Samples that each process has shown to the network."""
    return [sum(map(int, file.read_text().split())) for file in sorted(place.iterdir())]


def ended(job):
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    data = write_digits(place / "digits.npz", 120)
    (place / "parts.py").write_text(PARTS)
    how = ("--use", place / "parts.py", "--network", "counted", "--max_steps", 6)
    tiny = [word for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] != "--network" for word in pair]
    ended(on(1, place / "counts", "train", "mnist", "--run", place / "run", "--data", data, *tiny, *how))
    return place / "run"


@pytest.mark.slow
def test_samples_are_those_of_one_process(trained, tmp_path):
    drawn, calls = {}, {}
    for number in NUMBERS:
        words = ("--n", 12, "--steps", 3, "--out", tmp_path / f"{number}.npz", "--use", trained.parent / "parts.py")
        out = ended(on(number, tmp_path / str(number), "sample", trained, *words))
        assert out.count("\n") == 1, out
        calls[number] = counted(tmp_path / str(number))
        with np.load(tmp_path / f"{number}.npz") as arrays:
            drawn[number] = arrays["images"].astype(int), arrays["labels"]
    for number in NUMBERS[1:]:
        assert np.abs(drawn[number][0] - drawn[1][0]).max() <= 1
        assert np.array_equal(drawn[number][1], drawn[1][1])
        assert calls[number] == [calls[1][0] // number] * number


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", [("--n", 24, "--images", 6), ("--bound", "--n", 20), ("--bound", "--standard_error", 0.5), ("--ode", "--n", 128)]
)
def test_numbers_are_those_of_one_process(trained, what, tmp_path):
    held = write_digits(tmp_path / "others.npz", 200)
    words = ("evaluate", trained, "--data", held, *what, "--json", "--use", trained.parent / "parts.py")
    found = [json.loads(ended(on(number, tmp_path / str(number), *words))) for number in (1, 2)]
    for values in found:
        values.pop("picture", None)
    assert found[1].keys() == found[0].keys()
    one, two = (torch.tensor(list(numbers(values)), dtype=torch.float64) for values in found)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert not list(trained.glob("*.progress*"))
    (alone,), both = counted(tmp_path / "1"), counted(tmp_path / "2")
    assert (len(both), sum(both)) == (2, alone)
    assert min(both) > 0.45 * alone


def numbers(value):
    """All of them, in their order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield float(value)
