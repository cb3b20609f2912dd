"""What happens in a training that somebody else may want to know of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.errors import RunError
from xhat.objective.objective import Objective
from xhat.tensors import evaluating
from xhat.training.stop import Stop


@dataclass(frozen=True)
class Moment:
    """Where a run is.

    Attributes:
        run: its folder.
        step: steps done.
        progress: share of the budget that is spent.
        seconds: trained so far.
        losses: what the objective returned at this step, () each, on this process, without a graph.
        numbers: at `logged` the row of metrics.jsonl, at `measured` what was measured on held-out samples; else empty.
        path: at `saved` the weights, at `pictured` the picture; else None.
        objective: what is trained, as it is now, in evaluation mode: a call of it counts nothing.
        denoiser: with the averaged weights, in evaluation mode, to sample from; training goes on in the mode it was in.
    """

    run: Path
    step: int
    progress: float
    seconds: float
    losses: Mapping[str, Tensor]
    objective: Objective
    denoiser: Denoiser
    _stop: Stop = field(repr=False)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def stop(self) -> None:
        """End the training after this step (of several processes: after the next), its state saved, as Ctrl-C does."""
        self._stop.ask()


class Callback:
    """What is called at moments of a training, on the main process; override what you need.

    An exception ends the training, its state saved, and is raised by `fit`: so a trial is pruned.
    """

    def step(self, at: Moment) -> None:
        """After every step."""

    def logged(self, at: Moment) -> None:
        """After a row of metrics.jsonl: its values are `at.numbers`."""

    def measured(self, at: Moment) -> None:
        """After a measurement on held-out samples: `at.numbers["eval/bits_per_dim"]` and its kin."""

    def pictured(self, at: Moment) -> None:
        """After a picture of samples was drawn, `at.path`."""

    def saved(self, at: Moment) -> None:
        """Once a checkpoint and the weights, `at.path`, are on the disk: at one of the steps that follow `at.step`."""

    def ended(self, at: Moment) -> None:
        """After the last step, everything written."""


def require_callbacks(callbacks: object) -> None:
    """Refuse what is no sequence of callbacks.

    Raises:
        RunError: a class, a function, a single one.
    """
    one = (
        next((c for c in callbacks if not isinstance(c, Callback)), None) if isinstance(callbacks, list | tuple) else callbacks
    )
    if one is not None:
        what = one.__name__ if isinstance(one, type) else type(one).__name__
        raise RunError(
            f"callbacks is a list of objects of xhat.Callback, got {what}: derive a class from it, and give [Mine()]"
        )


class Callbacks:
    """Calls all of them; the first exception is kept, and asks to stop."""

    def __init__(self, callbacks: Sequence[Callback], stop: Stop) -> None:
        self.callbacks, self.stop = callbacks, stop
        self.error: Exception | None = None

    def call(self, moment: str, at: Moment) -> None:
        """Tell all of them, by the name of the method, unless one has failed; that a training has ended all of them hear."""
        if not self.callbacks or (self.error is not None and moment != "ended"):
            return
        with evaluating(at.objective), evaluating(at.denoiser):  # the denoiser may be the very one that is trained
            for callback in self.callbacks:
                try:
                    getattr(callback, moment)(at)
                except Exception as error:  # whatever a user's code raises: raised again once the state is saved
                    self.error = self.error or error
                    self.stop.ask()
                    if moment != "ended":
                        return

    def finish(self) -> None:
        """Raise what was kept."""
        if self.error is not None:
            raise self.error
