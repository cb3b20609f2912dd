"""Signals ask a run to stop; a run in a thread hears none."""

import contextlib
import os
import signal
import threading

import pytest

from helpers import TINY, xhat
from xhat import cli
from xhat.commands.signals import Ended, as_outside, ended_by_signals
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


def test_a_signal_that_ended_a_command_does_not_end_a_later_training():
    with pytest.raises(Ended), ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    stop = Stop()
    stop.restore()
    assert not stop.asked


def test_a_training_after_a_signal_that_somebody_swallowed_ends_after_its_first_step():
    with ended_by_signals():
        with contextlib.suppress(Ended):
            os.kill(os.getpid(), signal.SIGTERM)
        stop = Stop()
        stop.restore()
        assert stop.asked == signal.SIGTERM


def test_while_modules_are_imported_a_signal_does_what_it_did_outside():
    """There are modules that catch all, and would swallow what a handler raises."""
    before = signal.getsignal(signal.SIGTERM)
    with ended_by_signals():
        inside = signal.getsignal(signal.SIGTERM)
        assert inside is not before
        with as_outside():
            assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGTERM) is inside
    with as_outside():
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_was_swallowed_while_arguments_were_read_ends_the_training(monkeypatch):
    """By a file of --use, for example, that catches all."""

    def read(argv):
        with contextlib.suppress(Ended):
            os.kill(os.getpid(), signal.SIGTERM)

    def act(asked):
        stop = Stop()
        stop.restore()
        return stop.asked

    monkeypatch.setattr(cli, "_of", lambda module, name: {"read": read, "act": act}[name])
    assert cli.main(["train"]) == signal.SIGTERM
