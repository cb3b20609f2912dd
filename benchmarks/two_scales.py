"""A study's runs on their own scale and on the common one: raw losses while training, then the error of x0 at each noise level.

usage: python benchmarks/two_scales.py FOLDER

FOLDER is the --out of `xhat compare`. The first seed of each change. The floor is the error that no denoiser can go below:
a bracket from the data alone.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from usage import Parser, folder, guarded

from xhat.report.measured import measured
from xhat.report.of_study import study_how
from xhat.runs.metrics import read_metrics
from xhat.studies.study import STUDY_FILE, study_from_file

LEVELS = (-8, -4, 0, 4, 8)
EARLY = (20, 100)


def losses(run: Path) -> list[float]:
    """The mean raw loss of the 20 steps up to an early step, and of the run's last 100."""
    found = {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}
    last = [value for step, value in found.items() if step > max(found) - 100]
    return [*(found[step] for step in EARLY), sum(last) / len(last)]


def main() -> None:
    """Both tables."""
    parser = Parser(description="raw losses and errors of a study's runs")
    parser.add_argument("folder", type=folder, help="the --out of xhat compare")
    out: Path = parser.parse_args().folder
    study, _ = study_from_file(out / STUDY_FILE)
    runs = {change: study.folder(out, change, study.seeds[0]) for change in study.changes}
    how = study_how(study, list(runs.values()))
    console = Console(highlight=False)
    raw = Table("raw loss", *(f"steps {step - 19}-{step}" for step in EARLY), "last 100 steps", box=None, pad_edge=False)
    for change, run in runs.items():
        raw.add_row(change, *(f"{value:.3g}" for value in losses(run)))
    console.print(raw)
    found = {change: measured(run, how).lines for change, run in runs.items()}
    first = next(iter(found.values()))
    lines = {"floor, at least": first["floor_lower"], "floor, at most": first["floor_upper"]}
    lines |= {change: of["x0_error"] for change, of in found.items()}
    errors = Table("error of x0 at logsnr", *map(str, LEVELS), box=None, pad_edge=False)
    for name, line in lines.items():
        errors.add_row(name, *(f"{line.y[line.x.index(level)]:.3g}" for level in LEVELS))
    console.print()
    console.print(errors)


if __name__ == "__main__":
    guarded(main)
