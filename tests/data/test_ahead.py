"""Workers give what the source gives, in the order in which it is asked for, and end with the training."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

import xhat
from xhat.data import Batch, from_dataset, from_iterable, from_tensors
from xhat.data import ahead as reading
from xhat.data.ahead import Ahead, Request, is_slow, workers_for
from xhat.data.lost import Lost, lost_of, told
from xhat.data.null import WithNull
from xhat.data.shape import DataShape
from xhat.errors import DataError
from xhat.rng import Shard
from xhat.sources.streamed import Samples


class Numbers:
    """Sample k of step n is 1000 n + k; what it is asked for is kept, and who asked."""

    decodes = True

    def __init__(self, fail=None):
        self.fail, self.lost = fail, Lost()

    def get(self, step, shard, rows):
        if step == self.fail:
            raise DataError(f"step {step} is bad")
        self.lost.names[f"{step}"] = f"sample of step {step}"
        return Batch(
            torch.arange(shard.first, shard.first + rows).float()[:, None] + 1000 * step, None, {"pid": [os.getpid()] * rows}
        )

    def fingerprint(self):
        return "numbers"


def requests(rank=0, world=1, parts=2, rows=3):
    def from_step(step):
        while True:
            for part in range(parts):
                yield Request(step, Shard((part * world + rank) * rows, world * parts * rows), rows)
            step += 1

    return from_step


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("start", [0, 7])
def test_they_give_what_the_source_gives(workers, start):
    source, order = Numbers(), requests()
    ahead = Ahead(source, workers, order)
    with ahead.at_work():
        for request, _ in zip(order(start), range(9), strict=False):
            found = ahead.get(*request)
            assert torch.equal(found.x0, source.get(*request).x0)
            assert found.extra["pid"][0] != os.getpid()
    assert ahead.fingerprint() == "numbers"


@pytest.mark.parametrize("kind", ["samples", "batches"])
def test_what_was_open_before_they_began_is_opened_anew(kind, tmp_path):
    """A fork shares the place in an open file: two workers that go on from it read each other's samples."""
    (tmp_path / "file").write_bytes(bytes(range(200)))

    def begin(_=0):
        with open(tmp_path / "file", "rb", buffering=0) as file:
            while value := file.read(1):
                yield torch.tensor([float(value[0])]) if kind == "samples" else torch.tensor([[float(value[0])]])

    def source():
        return Samples(begin, Batch, "mark", "name", DataShape.of((1,))) if kind == "samples" else from_iterable(begin)

    order, ahead, expected = requests(), Ahead(source(), 2, requests()), source()
    ahead.get(0, Shard(0, 6), 3)
    with ahead.at_work():
        for request, _ in zip(order(1), range(40), strict=False):
            assert torch.equal(ahead.get(*request).x0, expected.get(*request).x0), request


def test_out_of_order_and_before_the_training_it_is_read_on_the_spot():
    ahead = Ahead(Numbers(), 1, requests())
    assert ahead.get(0, Shard(0, 6), 3).extra["pid"] == [os.getpid()] * 3
    with ahead.at_work():
        assert ahead.get(0, Shard(0, 6), 3).extra["pid"][0] != os.getpid()
        assert ahead.get(5, Shard(2, 6), 1).extra["pid"] == [os.getpid()]
        assert float(ahead.get(0, Shard(3, 6), 3).x0[0]) == 3  # and the workers are where they were
        assert float(ahead.get(9, Shard(0, 6), 3).x0[0]) == 9000  # a jump: they begin again there
        assert float(ahead.get(9, Shard(3, 6), 3).x0[0]) == 9003
    time.sleep(0.2)
    assert not multiprocessing.active_children()


def test_what_the_source_refuses_is_one_line():
    ahead = Ahead(Numbers(fail=1), 2, requests())
    with ahead.at_work():
        for request, _ in zip(requests()(0), range(2), strict=False):
            ahead.get(*request)
        with pytest.raises(DataError, match=r"^step 1 is bad$"):
            ahead.get(1, Shard(0, 6), 3)


def test_a_worker_that_is_killed_is_named():
    ahead = Ahead(Numbers(), 1, requests())

    def read_and_kill():
        for request, _ in zip(requests()(0), range(99), strict=False):
            os.kill(ahead.get(*request).extra["pid"][0], signal.SIGKILL)

    with ahead.at_work(), pytest.raises(DataError, match="a process that reads Numbers has ended"):
        read_and_kill()


def test_signals_to_the_training_are_not_theirs():
    ahead = Ahead(Numbers(), 1, requests())
    with ahead.at_work():
        pid = ahead.get(0, Shard(0, 6), 3).extra["pid"][0]
        assert os.getpgid(pid) != os.getpgid(0)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
        assert ahead.get(0, Shard(3, 6), 3).extra["pid"][0] == pid
        assert ahead.get(1, Shard(0, 6), 3).extra["pid"][0] == pid


def test_what_they_could_not_read_is_known_here():
    ahead = Ahead(Numbers(), 1, requests())
    with ahead.at_work():
        ahead.get(0, Shard(0, 6), 3)
    assert lost_of(ahead).names["0"] == "sample of step 0"
    assert lost_of(WithNull(from_tensors(torch.zeros(30, 2)), {})) is None


def test_how_many_there_are(monkeypatch):
    monkeypatch.setattr(reading, "cores", lambda: 16)
    slow, fast = Numbers(), from_tensors(torch.zeros(30, 2))
    assert is_slow(WithNull(fast, {})) is False
    assert [workers_for(s, None, n) for s, n in ((fast, 1), (slow, 1), (slow, 4), (slow, 16))] == [0, 4, 3, 1]
    assert (workers_for(fast, 2, 1), workers_for(slow, 0, 1)) == (2, 0)


class Squares(Dataset):
    def __len__(self):
        return 300

    def __getitem__(self, number):
        return torch.full((1, 8, 8), number / 300)


def fitted(folder, **options):
    torch.manual_seed(0)
    net = xhat.UNet(1, size=8, widths=(8, 8), blocks=(1, 1), embedding=16)
    objective = xhat.Objective(xhat.Denoiser(net, xhat.Cosine(), xhat.V), {"denoise": xhat.Term(xhat.Denoising())})
    common = {"batch_size": 8, "log_every": 1, "checkpoint_every": 3, "sampling": {"steps": 2}, "compile": "off"}
    return xhat.fit(objective, from_dataset(Squares()), folder, **common, **options)


def test_a_run_with_workers_is_the_run_without(tmp_path):
    plain = fitted(tmp_path / "plain", max_steps=6, workers=0, accumulate=2)
    read = fitted(tmp_path / "read", max_steps=6, workers=2, accumulate=2)
    fitted(tmp_path / "resumed", max_steps=3, workers=1, accumulate=2)
    resumed = fitted(tmp_path / "resumed", max_steps=6, workers=3, accumulate=2, resume=True)
    assert plain.numbers["loss"] == read.numbers["loss"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("plain", "read", "resumed")]
    assert lines == [6, 6, 6]
    assert resumed.step == 6
    assert not multiprocessing.active_children()


def test_the_first_that_are_lost_are_named_and_no_more():
    names = {str(k): f"file {k}" for k in range(9)}
    assert told({}, 0) is None
    assert told(dict(list(names.items())[:2]), 0) == "left out, the next one is taken instead: file 0, file 1"
    assert told(names, 4) == "left out, the next one is taken instead: file 4"
    assert told(names, 5) is None
