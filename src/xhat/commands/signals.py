"""SIGTERM, which clusters send, and SIGHUP end a command as Ctrl-C does: what is half written goes, what is whole stays."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(BaseException):
    """A signal has ended the command.

    Attributes:
        number: of the signal; the exit code is 128 + it, as the shell says of other tools.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Ended` on these signals, unless somebody else handles or ignores them, or this is not the main thread."""
    here = threading.current_thread() is threading.main_thread()
    heard = [number for number in ENDING if here and signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
