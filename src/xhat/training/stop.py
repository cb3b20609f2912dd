"""How a run is asked to stop early."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

AGAIN = 1.0
"""Seconds after which another Ctrl-C is a second one: a launcher passes the first on to processes that have it already."""
HEARD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

heard_before = 0
"""A signal that came before the training began: it ends after its first step."""


@contextlib.contextmanager
def heard_from_here_on() -> Iterator[None]:
    """From a run's first file on a signal no longer ends the process, but the training, after its first step: it is saved."""
    global heard_before
    before, here = heard_before, threading.current_thread() is threading.main_thread()

    def hear(number: int, frame: FrameType | None) -> None:
        global heard_before
        heard_before = heard_before or number

    handlers = {s: signal.signal(s, hear) for s in HEARD if here and signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        heard_before = before


class Stop:
    """Ctrl-C, SIGTERM and SIGHUP set `asked`, and the loop ends after the step under way; a second Ctrl-C ends it at once.

    A signal that is ignored, as nohup does with SIGHUP, stays so. In a thread that is not the main one, signals are the main
    thread's, and nobody asks.

    Attributes:
        asked: the number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.asked, self._since = heard_before, 0.0
        here = threading.current_thread() is threading.main_thread()
        heard = [s for s in HEARD if here and signal.getsignal(s) != signal.SIG_IGN]
        self._before = {s: signal.signal(s, self._ask) for s in heard}

    def ask(self) -> None:
        """As Ctrl-C does."""
        self.asked = self.asked or int(signal.SIGINT)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and time.monotonic() - self._since > AGAIN:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._since = number, time.monotonic()

    def restore(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
