"""How a run is asked to stop early."""

import signal
import threading
from types import FrameType


class Stop:
    """Ctrl-C and SIGTERM set `asked`, and the loop ends after the step under way; a second Ctrl-C ends it at once.

    In a thread that is not the main one, signals are the main thread's, and nobody asks.
    """

    def __init__(self) -> None:
        self.asked = False
        heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {s: signal.signal(s, self._ask) for s in heard}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
