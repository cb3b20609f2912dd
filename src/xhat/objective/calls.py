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
        step: the last one, () int64; -1 before the first. As of when the state was last asked for.
        rows: samples of it that were drawn, on all ranks, () int64; as of then.
    """

    step: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))
        self.register_buffer("rows", torch.tensor(0))
        # the same two numbers: a buffer on a GPU would be waited for at every call, and filling one takes longer than to count
        self._now = -1, 0
        self.register_load_state_dict_post_hook(_read)  # type: ignore[no-untyped-call]
        self.register_state_dict_pre_hook(_write)  # type: ignore[no-untyped-call]

    def next(self, step: int | None, rows: int, total: int | None = None) -> tuple[int, int]:
        """The step of a call, and how many of its samples were drawn before.

        Args:
            step: as given; None is the next one, or the last one while it lacks samples of its total.
            rows: samples of this call, on all ranks.
            total: samples of the step, if the caller says how many there are.
        """
        last, seen = self._now
        unfinished = total is not None and 0 < seen < total
        if step is None:
            step = last if unfinished else last + 1
        before = seen if step == last and (total is None or unfinished) else 0
        self._now = step, before + rows
        return step, before

    def back_to(self, step: int) -> None:
        """As after all samples of an earlier step."""
        self._now = step, self._now[1]


def _write(calls: nn.Module, *_: Any) -> None:
    assert isinstance(calls, Calls)
    calls.step.fill_(calls._now[0])
    calls.rows.fill_(calls._now[1])


def _read(calls: nn.Module, _: Any) -> None:
    assert isinstance(calls, Calls)
    calls._now = int(calls.step), int(calls.rows)


def whole_number(step: SupportsInt) -> int:
    """A step as an integer, whatever kind of number it comes as.

    Raises:
        ValueError: it is none.
    """
    try:
        number = int(step)
    except (OverflowError, ValueError):  # inf, NaN
        number = -1
    if number != step or not 0 <= number < 2**62:
        raise ValueError(f"step must be a whole number from 0, got {step}")
    return number
