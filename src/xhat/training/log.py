"""What a run tells of its steps: means over a few of them, as rows of metrics.jsonl and on the display."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from xhat.data.lost import told
from xhat.objective.objective import Objective
from xhat.runs.metrics import Mark, append_metrics, restore_metrics, sync_metrics
from xhat.training.display import Display
from xhat.training.level_means import LevelMeans
from xhat.training.loop import Step


class Log:
    """Averages every term between rows; only the main process writes and shows.

    Args:
        run: the run's folder.
        accelerator: of the run.
        objective: that is trained, whose losses are also averaged by noise level.
        every: steps between rows.
        start: steps done already; later rows of an interrupted run are dropped.
        batch: images per step.
        display: shows what is written.
        before: `state` at `start`; None without one.
    """

    def __init__(
        self,
        run: Path,
        accelerator: Accelerator,
        objective: Objective,
        every: int,
        start: int,
        batch: int,
        display: Display,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.accelerator, self.every, self.batch, self.display = run, accelerator, every, batch, display
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.since, self.steps, self.lost = time.perf_counter(), 0, 0
        self.levels = LevelMeans(objective, accelerator.device)
        if before is not None:
            self.counts = dict(before["counts"])
            self.sums = {name: own_of(each, accelerator) for name, each in before["sums"].items()}
            processes = accelerator.num_processes
            levels = {name: own_of(each, accelerator, len(each) / processes) for name, each in before["levels"].items()}
            self.levels.sums = levels  # which are added up over the processes, and not averaged
        self.mark = Mark()
        if accelerator.is_main_process:
            known = Mark() if start == 0 else None if before is None else Mark(*before["mark"])
            self.mark = restore_metrics(run, start, known)
            display.start(start)

    def state(self) -> dict[str, Any]:
        """What the next row averages so far, of each process, and the rows that are written; all of them ask."""
        if self.accelerator.is_main_process:
            sync_metrics(self.run)
        sums = {name: self.accelerator.gather(value[None]) for name, value in self.sums.items()}
        levels = {name: self.accelerator.gather(value[None]) for name, value in sorted(self.levels.sums.items())}
        return {"counts": dict(self.counts), "sums": sums, "levels": levels, "mark": [self.mark.size, self.mark.crc32]}

    def say(self, text: str) -> None:
        """One line for the user."""
        if self.accelerator.is_main_process:
            self.display.say(text)

    def step(
        self,
        done: int,
        step: Step,
        progress: float,
        seconds: float,
        measured: Mapping[str, float],
        lost: Mapping[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """Take in one step; on each `every`-th, and at the end, write a row.

        Args:
            done: steps done, this one included.
            step: what it was.
            progress: share of the budget.
            seconds: trained so far.
            measured: on held-out images, at steps that write a row.
            lost: samples of this process that could not be read so far, each with why.

        Returns:
            The row that was written; None if none was.
        """
        for name, value in {**step.losses, "grad_norm": step.norm}.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.steps += 1
        self._tell(lost or {})
        if done % self.every and progress < 1:
            return None
        speed, means, levels = self._speed(), self._means(), self.levels.take(self.accelerator)
        if not self.accelerator.is_main_process:
            return None
        loss, grad_norm = means.pop("loss"), means.pop("grad_norm")
        row: dict[str, Any] = {
            "step": done,
            "images": done * self.batch,
            "seconds": round(seconds, 3),
            "progress": round(progress, 6),
            "images_per_second": round(speed, 1),
        }
        row |= {"lr": step.rate, "grad_norm": grad_norm, "loss": loss, "terms": means, "levels": levels, **measured}
        row |= {"left_out": self.lost} if self.lost else {}
        self.mark = append_metrics(self.run, row, self.mark)
        self.display.show(done, progress, loss, speed, seconds)
        return row

    def _tell(self, lost: Mapping[str, str]) -> None:
        """Of samples that could not be read the first are named, and all counted."""
        if (line := told(lost, self.lost)) is not None:
            self.say(line)
        self.lost = len(lost)

    def close(self) -> None:
        """Nothing more is shown."""
        self.display.stop()
        self.levels.close()

    def _speed(self) -> float:
        """Images per second since the last row."""
        now = time.perf_counter()
        speed, self.since, self.steps = self.steps * self.batch / (now - self.since), now, 0
        return speed

    def _means(self) -> dict[str, float]:
        """Since the last row, over all processes."""
        means = {k: float(self.accelerator.reduce(v / self.counts[k], reduction="mean")) for k, v in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


def own_of(each: Tensor, accelerator: Accelerator, share: float = 1.0) -> Tensor:
    """This process's part of what all processes had summed, (processes, ...).

    Args:
        each: by process.
        accelerator: of this process, and perhaps of another number of them.
        share: of the mean of all that each gets where it is another number.
    """
    same = len(each) == accelerator.num_processes
    return (each[accelerator.process_index] if same else each.mean(0) * share).to(accelerator.device)
