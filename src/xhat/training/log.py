"""What a run tells: metrics.jsonl, and a progress bar (or, where there is no terminal, a line now and then)."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from xhat.commands.terminal import console, say
from xhat.runs.metrics import append_metrics, forget_metrics


class Log:
    """Averages every term between log lines, and shows the progress; only the main process writes.

    Args:
        run: the run's folder.
        accelerator: of the run.
        every: steps between lines of metrics.jsonl.
        start: steps done already; later lines of an interrupted run are dropped.
        batch: images per step.
    """

    def __init__(self, run: Path, accelerator: Accelerator, every: int, start: int, batch: int) -> None:
        self.run, self.accelerator, self.every, self.batch = run, accelerator, every, batch
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.since, self.steps, self.spoken = time.perf_counter(), 0, 0
        self.console = console(stderr=True)
        self.bar: Progress | None = None
        if accelerator.is_main_process:
            forget_metrics(run, start)
            if self.console.is_terminal:
                self.bar = Progress(
                    TextColumn("training"),
                    BarColumn(),
                    TextColumn("{task.percentage:3.0f} %  step {task.fields[step]}  loss {task.fields[loss]:.4f}"),
                    TextColumn("{task.fields[speed]:.0f} images/s"),
                    TimeRemainingColumn(compact=True),
                    TextColumn("left"),
                    console=self.console,
                    refresh_per_second=4,
                )
                self.task = self.bar.add_task("training", total=1.0, step=start, loss=float("nan"), speed=0.0)
                self.bar.start()

    def say(self, text: str) -> None:
        """One line for the user, above the bar."""
        if self.accelerator.is_main_process:
            if self.bar is None:
                say(text)
            else:
                self.console.print(text, soft_wrap=True)

    def step(
        self,
        done: int,
        losses: dict[str, Tensor],
        progress: float,
        seconds: float,
        lr: float,
        norm: Tensor,
        measured: Mapping[str, float],
    ) -> None:
        """Take in one step; `done` counts it. On each `every`-th, write a line.

        Args:
            done: steps done.
            losses: what the objective returned.
            progress: share of the budget.
            seconds: trained so far.
            lr: learning rate of the step.
            norm: of the gradient, before clipping.
            measured: on held-out images, at steps that write a line.
        """
        for name, value in {**losses, "grad_norm": norm}.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.steps += 1
        if done % self.every and progress < 1:
            return
        now = time.perf_counter()
        speed, self.since, self.steps = self.steps * self.batch / (now - self.since), now, 0
        means = {k: self._over_ranks(v / self.counts[k]) for k, v in self.sums.items()}
        self.sums, self.counts = {}, {}
        if not self.accelerator.is_main_process:
            return
        loss, grad_norm = means.pop("loss"), means.pop("grad_norm")
        row: dict[str, object] = {
            "step": done,
            "images": done * self.batch,
            "seconds": round(seconds, 3),
            "progress": round(progress, 6),
            "images_per_second": round(speed, 1),
        }
        row |= {"lr": lr, "grad_norm": grad_norm, "loss": loss, "terms": means, **measured}
        append_metrics(self.run, row)
        if self.bar is not None:
            self.bar.update(self.task, completed=progress, step=done, loss=loss, speed=speed)
        elif progress * 10 >= self.spoken + 1 or progress >= 1:
            self.spoken = int(progress * 10)
            self.say(f"{progress:4.0%}  step {done}  loss {loss:.4f}  {speed:.0f} images/s  {seconds:.0f} s")

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.stop()

    def _over_ranks(self, value: Tensor) -> float:
        return float(self.accelerator.reduce(value, reduction="mean"))
