"""What a run has come to, copied between two steps and written by a thread, while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from xhat.errors import SharedError
from xhat.runs.averages import place_of
from xhat.runs.places import WEIGHTS, checkpoints
from xhat.runs.weights import save_weights, weights_file
from xhat.training.callbacks import Moment
from xhat.training.log import Log
from xhat.training.setup import Setup


class Saving:
    """Writes one state at a time: who saves another one waits for it.

    A training stands still for the copy, which takes the state's size once more of the CPU's memory until it is written.

    Args:
        setup: whose state is saved.
        run: the folder.
        log: of the run.
    """

    def __init__(self, setup: Setup, run: Path, log: Log) -> None:
        self.setup, self.run, self.log = setup, run, log
        self._writer = ThreadPoolExecutor(1, "saving")
        self._written: Future[None] | None = None
        self._at: Moment | None = None
        # a training speaks of other things at the same time, and by way of its devices
        self._group: Any = torch.distributed.new_group(backend="gloo") if setup.state.split else None

    def begin(self, at: Moment | None = None) -> None:
        """Copy the whole training state, and the weights to sample from, and begin to write; all processes take part.

        Args:
            at: what `settled` says when it is done.

        Raises:
            SharedError: the weights are not finite: they are not worth keeping.
            OSError: the one before could not be written.
        """
        self.settled(wait=True)
        _require_finite(self.setup, self.run)
        self.setup.accelerator.wait_for_everyone()
        own = self.log.state()
        parts = [*self._checkpoint(own), *weights_of(self.setup, self.run)]
        if parts:
            self._written, self._at = self._writer.submit(_write, parts), at

    def settled(self, *, wait: bool = False) -> Moment | None:
        """The moment whose state is on the disk now, and was not at the last question; else None.

        Args:
            wait: for what is being written.

        Raises:
            OSError: it could not be written.
        """
        written = self._written
        if written is None or not (wait or written.done()):
            return None
        self._written = None
        written.result()
        return self._at

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it."""
        self._writer.shutdown(wait=True)

    def _checkpoint(self, log: dict[str, Any]) -> list[Callable[[], object]]:
        setup = self.setup
        if not (setup.accelerator.is_main_process or setup.state.split):
            return []
        shared_out = [setup.accelerator.num_processes, setup.options.accumulate]
        more = {"about": setup.about, "log": log, "shared_out": shared_out}
        return [setup.state.checkpoint(self.run, more, self._group)]


def weights_of(setup: Setup, run: Path) -> list[Callable[[], object]]:
    """What writes a copy of the weights to sample from; nothing on a process that does not write."""
    state = setup.state
    writes = setup.accelerator.is_main_process
    if not (writes or state.split):
        return []
    weights = state.weights(kept=writes)
    if not writes:
        return []
    copied = weights_file(weights, setup.config, setup.shape, state.step, state.given)
    return [lambda: copied.write(run / WEIGHTS)]


def keep_averages(setup: Setup, run: Path) -> None:
    """Write the averages that others are made of later; all processes take part.

    Raises:
        SharedError: the weights are not finite.
    """
    _require_finite(setup, run)
    state, writes = setup.state, setup.accelerator.is_main_process
    if not (writes or state.split):
        return
    for track in state.tracks:
        weights = state.weights(track, kept=writes)
        if writes:
            path = place_of(run, state.step, track.width)
            path.parent.mkdir(exist_ok=True)
            save_weights(path, weights, setup.config, setup.shape, state.step, state.given)


def _require_finite(setup: Setup, run: Path) -> None:
    if (name := setup.state.not_finite()) is not None:
        raise SharedError(f"the weights are not finite after step {setup.state.step} ({name}): {way_back(run)}")


def way_back(run: Path) -> str:
    """What to do after weights or losses that are not finite."""
    known = checkpoints(run)
    if not known:
        return "start anew with a lower optimizer.lr, in another folder"
    return f"{known[0].name} is the last state kept: go on from it with a lower learning rate, --resume --optimizer.lr ..."


def _write(parts: list[Callable[[], object]]) -> None:
    for write in parts:
        write()
