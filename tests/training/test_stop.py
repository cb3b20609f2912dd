"""Signals ask a run to stop; a run in a thread hears none."""

import os
import signal
import threading

import pytest

from helpers import TINY, xhat
from xhat.training.stop import Stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_the_second_ctrl_c_ends_at_once(number, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = Stop()
    try:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked == number
        os.kill(os.getpid(), signal.SIGINT)  # what a launcher passes on
        assert stop.asked == number
        monkeypatch.setattr("xhat.training.stop.AGAIN", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.restore()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_from_a_thread(tmp_path, digits):
    """As notebooks and web servers do: without handlers of signals, which are the main thread's."""
    before, codes = signal.getsignal(signal.SIGINT), []
    arguments = ("train", "mnist", "--data", digits, "--run", tmp_path / "run", "--max_steps", 2, *TINY)
    thread = threading.Thread(target=lambda: codes.append(xhat(*arguments)[0]))
    thread.start()
    thread.join()
    assert codes == [0]
    assert signal.getsignal(signal.SIGINT) is before
