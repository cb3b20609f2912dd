"""Which draw a call of an objective gets, when nobody says so: it counts its own calls."""

from typing import Any, SupportsInt

import torch
from torch import Tensor, nn


class Calls(nn.Module):
    """Counts training steps, and the samples that each of them has seen so far.

    A call without a step is a step of its own, the one after the last. Calls that name the same step one after the other are
    its micro-batches: each continues where the one before ended, so that no two of them see the same noise. The count is in
    buffers: saved, restored, and equal on all ranks, which make the same calls.

    Attributes:
        step: the last one, () int64; -1 before the first.
        rows: samples of it that were drawn, on all ranks, () int64.
    """

    step: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))
        self.register_buffer("rows", torch.tensor(0))
        self._now = -1, 0  # the same two numbers: reading a buffer on a GPU would wait for it at every call
        self.register_load_state_dict_post_hook(_read)  # type: ignore[no-untyped-call]

    @property
    def last(self) -> int:
        """The step of the last call."""
        return max(0, self._now[0])

    def next(self, step: int | None, rows: int) -> tuple[int, int]:
        """The step of a call with so many samples on all ranks, and how many of its samples were drawn before."""
        last, seen = self._now
        step = last + 1 if step is None else step
        before = seen if step == last else 0
        self._now = step, before + rows
        self.step.fill_(step)
        self.rows.fill_(before + rows)
        return step, before


def _read(calls: nn.Module, _: Any) -> None:
    assert isinstance(calls, Calls)
    calls._now = int(calls.step), int(calls.rows)


def whole_number(step: SupportsInt) -> int:
    """A step as an integer, whatever kind of number it comes as.

    Raises:
        ValueError: it is none.
    """
    number = int(step)
    if number != step or number < 0:
        raise ValueError(f"step must be a whole number from 0, got {step}")
    return number
