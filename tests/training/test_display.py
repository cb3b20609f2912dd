"""A bar on a terminal, elsewhere about ten lines."""

from io import StringIO

import pytest
import torch
from rich.console import Console

import xhat
from xhat.config.parsing import options_of
from xhat.training.display import LINES, Display


def console(terminal):
    return Console(file=StringIO(), force_terminal=terminal, width=120, markup=False, highlight=False)


def test_without_a_terminal_a_line_now_and_then():
    lines = []
    display = Display(console(False), lines.append)
    display.start(0)
    for step in range(1, 101):
        display.show(step, step / 100, 0.5, 64.0, 2.0 * step)
    display.stop()
    assert len(lines) == LINES
    assert lines[0] == " 10%  step 10  loss 0.5000  64 images/s  20 s"
    assert lines[-1].startswith("100%  step 100 ")
    assert display.console.file.getvalue() == ""


@pytest.mark.parametrize("start", [0, 70])
def test_a_terminal_has_a_bar_and_lines_above_it(start):
    lines = []
    display = Display(console(True), lines.append)
    display.start(start)
    display.say("a [note]")
    display.show(start + 5, 0.75, 0.25, 64.0, 2.0)
    display.stop()
    seen = display.console.file.getvalue()
    assert f"step {start}  loss nan" in seen
    assert f"75 %  step {start + 5}  loss 0.2500" in seen
    assert "64 images/s" in seen
    assert "a [note]" in seen
    assert lines == []


def test_times_that_have_not_begun_to_learn_are_named_at_the_end(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(()))

        def forward(self, z, t):
            return self.w * z

    found = {}
    for bins in (2, 64):
        lines, times = [], xhat.times.LossSecondMoment(history=3, bins=bins)
        objective = xhat.Objective(xhat.Denoiser(Net(), xhat.Cosine()), {"denoise": xhat.Term(xhat.Denoising())}, times)
        options = {"batch_size": 8, "compile": "off", "max_steps": 4, "sampling": {"steps": 2}}
        xhat.fit(
            objective,
            torch.rand(32, 1, 4, 4),
            tmp_path / str(bins),
            display=Display(console(False), lines.append),
            options=options_of(options),
        )
        found[bins] = [line for line in lines if line.startswith("times: ")]
    assert found[2] == []
    assert len(found[64]) == 1
    assert "LossSecondMoment has drawn evenly to the end, because it waits for 3 losses at each of 64 levels" in found[64][0]
