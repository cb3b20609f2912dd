"""What is shown while training: a bar on a terminal, elsewhere a line now and then."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 10
"""How many lines there are where there is no terminal, one whenever this part of the budget is spent."""


class Display:
    """Shows how far a run has come.

    Args:
        console: where the bar goes, if it is a terminal.
        say: takes a line where there is no bar.
    """

    def __init__(self, console: Console, say: Callable[[str], None]) -> None:
        self.console, self._say, self._said = console, say, 0
        self.bar = _bar(console) if console.is_terminal else None
        self._task = (
            None if self.bar is None else self.bar.add_task("", start=False, total=1.0, step=0, loss=float("nan"), speed=0.0)
        )

    def start(self, step: int) -> None:
        """From this step on."""
        if self.bar is not None and self._task is not None:
            self.bar.update(self._task, step=step)
            self.bar.start_task(self._task)
            self.bar.start()

    def say(self, text: str) -> None:
        """One line for the user, above the bar."""
        if self.bar is None:
            self._say(text)
        else:
            self.console.print(text, soft_wrap=True)

    def show(self, step: int, progress: float, loss: float, speed: float, seconds: float) -> None:
        """Where the run is: steps done, share of the budget, mean loss of late, images per second, seconds trained."""
        if self.bar is not None and self._task is not None:
            self.bar.update(self._task, completed=progress, step=step, loss=loss, speed=speed)
        elif progress * LINES >= self._said + 1 or progress >= 1:
            self._said = int(progress * LINES)
            self.say(f"{progress:4.0%}  step {step}  loss {loss:.4f}  {speed:.0f} images/s  {seconds:.0f} s")

    def stop(self) -> None:
        """The end of the bar."""
        if self.bar is not None:
            self.bar.stop()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %  step {task.fields[step]}  loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:.0f} images/s"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        refresh_per_second=4,
    )


def standard() -> Display:
    """On stderr: a bar on a terminal, elsewhere a line now and then."""
    return Display(Console(stderr=True, highlight=False, markup=False, emoji=False), lambda line: print(line, file=sys.stderr))
