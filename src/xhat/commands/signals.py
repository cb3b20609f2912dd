"""SIGTERM, which clusters send, and SIGHUP end a command as Ctrl-C does: what is half written goes, what is whole stays."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from xhat.training import stop
from xhat.training.stop import HEARD

Handler = signal.Handlers | Callable[[int, FrameType | None], None]
UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)
"""Handlers that nobody has chosen; a signal that is ignored, as nohup does with SIGHUP, stays so."""
_outside: dict[int, Any] = {}
"""The handlers that `ended_by_signals` has taken the place of."""


class Ended(BaseException):
    """A signal has ended the command.

    Attributes:
        number: of the signal; the exit code is 128 + it, as the shell says of other tools.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Let signals end the process without a word, as long as there is nothing to remove: while modules are imported.

    What a handler raised there might be swallowed, for there are modules that catch all.
    """
    with _handled(signal.SIG_DFL):
        yield


@contextlib.contextmanager
def as_outside() -> Iterator[None]:
    """Within `ended_by_signals`, let signals do what they did around it: while modules are imported."""
    with _set(_outside if threading.current_thread() is threading.main_thread() else {}):
        yield


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Ended` on signals. A training that begins after one, which somebody has swallowed, ends after its first step."""

    def end(number: int, frame: FrameType | None) -> None:
        stop.heard_before = number
        raise Ended(number)

    before = dict[int, Any]()
    try:
        with _handled(end) as before:
            _outside.update(before)
            yield
    finally:
        for number in before:
            _outside.pop(number, None)
        stop.heard_before = 0  # it is the command's alone, and not that of a training which follows in this process


@contextlib.contextmanager
def _handled(how: Handler) -> Iterator[dict[int, Any]]:
    """Signals whose handler nobody has chosen have this one; none in a thread that is not the main one."""
    here = threading.current_thread() is threading.main_thread()
    heard = [number for number in HEARD if here and signal.getsignal(number) in UNTOUCHED]
    before = {number: signal.getsignal(number) for number in heard}
    with _set(dict.fromkeys(heard, how)):
        yield before


@contextlib.contextmanager
def _set(handlers: Mapping[int, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
