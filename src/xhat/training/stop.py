"""How a run is asked to stop early."""

import signal
import threading
import time
from types import FrameType

AGAIN = 1.0
"""Seconds after which another Ctrl-C is a second one: a launcher passes the first on to processes that have it already."""
HEARD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

heard_before = 0
"""A signal that ended a command before its training began, if somebody has swallowed what that raised."""


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
