"""How long the first keystrokes take: imports, and commands that a run answers.

usage: python benchmarks/start.py RUN [ROUNDS]

Each in a process of its own, in turns; medians over the rounds, after one that fills the caches of files. A report is written
once, of a copy of RUN that has not been measured, and once more, of one that has.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import machine
from usage import Parser, count, folder, guarded

from xhat.report.measured import FOLDER

XHAT = [sys.executable, "-m", "xhat"]
PYTHON = [sys.executable, "-c"]


def seconds(command: list[str]) -> float:
    """Of one call, whatever it answers."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Call and print."""
    parser = Parser(description="how long the first keystrokes take")
    parser.add_argument("run", metavar="RUN", type=folder)
    parser.add_argument("rounds", nargs="?", type=count, default=5, metavar="ROUNDS")
    given = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as own:
        commands = {
            "import torch": [*PYTHON, "import torch"],
            "import xhat": [*PYTHON, "import xhat"],
            "import xhat, and its objective": [*PYTHON, "import xhat; xhat.Objective"],
            "xhat --version": [*XHAT, "--version"],
            "xhat --help": [*XHAT, "--help"],
            "xhat train --sed 1, misspelt": [*XHAT, "train", "mnist", "--run", f"{own}/none", "--sed", "1"],
            "xhat train mnits, misspelt": [*XHAT, "train", "mnits", "--run", f"{own}/none"],
            "xhat inspect RUN": [*XHAT, "inspect", str(given.run)],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for round_ in range(given.rounds + 1):
            for name, command in commands.items():
                once = seconds(command)
                if round_:
                    taken[name].append(once)
        for name, values in taken.items():
            print(f"{statistics.median(values):7.2f} s  {name}", flush=True)
        run, page = Path(own) / "run", f"{own}/report.html"
        shutil.copytree(given.run, run)
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        for name in ("xhat report RUN", "xhat report RUN, again"):
            print(f"{seconds([*XHAT, 'report', str(run), '--out', page, '--force']):7.2f} s  {name}", flush=True)


if __name__ == "__main__":
    guarded(main)
