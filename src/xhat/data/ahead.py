"""Batches that worker processes make before they are asked for."""

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import worker as torch_worker

from xhat.budgets import cores
from xhat.data.batch import Batch
from xhat.data.layers import layers
from xhat.data.lost import Lost, lost_of
from xhat.data.source import DataSource, asked, name_of
from xhat.errors import DataError, XhatError, first_line
from xhat.rng import Shard

DEPTH, MOST_WORKERS = 2, 4
"""Batches that each worker is ahead, and how many there are where nobody says."""


class Request(NamedTuple):
    """Arguments of `DataSource.get`."""

    step: int
    shard: Shard
    rows: int


Requests = Callable[[int], Iterator[Request]]
"""A step -> what will be asked for from there on, without an end."""


class Ahead:
    """A source as `DataSource`, whose workers follow the order in which a training asks.

    What is asked for out of order, or while none are at work, is read on the spot; on a CPU what is decoded already, too. The
    workers are this process's copies: they read, and never touch a GPU.

    Args:
        source: where batches come from.
        workers: how many processes.
        requests: that will come.
        pin: whether batches are to lie in memory that a GPU copies from while the processor goes on.
    """

    def __init__(self, source: DataSource, workers: int, requests: Requests, *, pin: bool = False) -> None:
        self.source, self.workers, self.requests, self.pin = source, workers, requests, pin
        self.name, self.lost, self.running = name_of(source), Lost(), False
        self._batches: Iterator[Any] | None = None
        self._next: Iterator[Request] = iter(())
        self._expected: Request | None = None

    def get(self, step: int, shard: Shard, rows: int) -> Batch:
        """As of `DataSource`."""
        wanted = Request(step, shard, rows)
        if self.running and self._nothing_is_left():
            self._end()
            return asked(self.source, step, shard, rows)
        if wanted != self._expected:
            if not self.running or wanted != next(self.requests(step)):
                return asked(self.source, step, shard, rows)
            self._start(step)
        assert self._batches is not None
        try:
            found, lost = next(self._batches)
        except XhatError:
            raise
        except (RuntimeError, OSError, EOFError) as error:  # a worker that was killed, for want of memory as a rule
            what = f"a process that reads {self.name} has ended ({first_line(error)})"
            raise DataError(f"{what}: try fewer workers") from error
        self._expected = next(self._next)
        self.lost.names |= lost
        if isinstance(found, str):
            raise DataError(found)
        batch: Batch = found
        return batch

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Let workers read, from the first step that is asked for on; after it they are gone."""
        self.running = True
        try:
            yield
        finally:
            self.running = False
            self._end()

    def _nothing_is_left(self) -> bool:
        """Whether all samples are decoded, so that workers would only take cores from a training on the CPU."""
        return not self.pin and any(getattr(one, "complete", False) for one in layers(self.source))

    def _end(self) -> None:
        self._batches = self._expected = None

    def _start(self, step: int) -> None:
        self._end()
        self._next = self.requests(step)
        self._expected = next(self._next)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="This DataLoader will create"
            )  # whoever asks for more than cores means it
            loader = self._loader(step)
            before = signal.getsignal(signal.SIGCHLD)
            self._batches = iter(loader)
        if threading.current_thread() is threading.main_thread():  # else a worker's end would be raised anywhere in a step
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

    def _loader(self, step: int) -> "DataLoader[Any]":
        return DataLoader(
            _Calls(self.source),
            sampler=self.requests(step),  # any iterable, and no end
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            prefetch_factor=DEPTH,
            pin_memory=self.pin,
            worker_init_fn=_alone,
            multiprocessing_context="fork",
        )


class _Calls(Dataset[Any]):
    """Request -> what the source gives for it, or the line that says why not; and what it has lost on the way."""

    def __init__(self, source: DataSource) -> None:
        self.source = source

    def __getitem__(self, request: Request) -> tuple[Batch | str, dict[str, str]]:
        lost = lost_of(self.source)
        try:
            return asked(self.source, *request), {} if lost is None else dict(lost.names)
        except XhatError as error:
            return str(error), {} if lost is None else dict(lost.names)


def _as_it_is(batch: Any) -> Any:
    return batch


def _alone(number: int) -> None:
    """Signals to the training are not for its workers, which end with it: a Ctrl-C saves, and reads no more.

    Nor are they told that they are workers: a library would give each of them a part of its samples, where each reads all.
    """
    torch_worker._worker_info = None
    with contextlib.suppress(OSError):
        os.setsid()
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def workers_for(source: DataSource, asked_for: int | None, processes: int) -> int:
    """How many workers: those that were asked for; else some where a source says that reading takes time.

    Args:
        source: that is read.
        asked_for: by the user; None is by itself.
        processes: of the training on this machine, which share its cores.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return 0
    if asked_for is not None:
        return asked_for
    return max(1, min(MOST_WORKERS, cores() // processes - 1)) if is_slow(source) else 0


def is_slow(source: object) -> bool:
    """Whether a source, or the one that it wraps, says that its samples are decoded: by an attribute `decodes`."""
    return any(getattr(one, "decodes", False) for one in layers(source))
