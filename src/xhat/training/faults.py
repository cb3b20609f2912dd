"""Faults of a training that a user can mend, in words: no memory left, another process gone."""

import contextlib
from collections.abc import Iterator

from xhat.errors import RunError, first_line, out_of_memory
from xhat.training.setup import Setup

GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting", "Socket closed")
"""What the libraries say of a process that cannot be reached any more."""


@contextlib.contextmanager
def mendable(setup: Setup) -> Iterator[None]:
    """Let what goes wrong in a step say what to change.

    Raises:
        RunError: there is not enough memory, or another process of the training has ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise RunError(_of_memory(setup)) from error
        if setup.accelerator.num_processes > 1 and any(words in str(error) for words in GONE):
            said = f"another process of this training has ended, at step {setup.state.step} ({first_line(error)[:120]})"
            raise RunError(f"{said}: see what it said; --resume goes on from the last checkpoint") from error
        raise


def _of_memory(setup: Setup) -> str:
    options, parts, processes = setup.options, setup.options.accumulate, setup.accelerator.num_processes
    said = f"out of memory at step {setup.state.step}, with {setup.rows} samples at a time"
    if setup.rows == 1:
        return f"{said}: choose a smaller network, or fewer differentiated steps in the losses on images"
    more = next(n for n in range(parts + 1, options.batch_size + 1) if options.batch_size % (n * processes) == 0)
    return f"{said}: set accumulate to {more}, the same batch of {options.batch_size} in more parts, or lower batch_size"
