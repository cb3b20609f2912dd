"""A study: one base config, a list of changes, several seeds; the same weights, data order and noise for all."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xhat.errors import RunError
from xhat.files import write_bytes
from xhat.runs.weights import WEIGHTS
from xhat.studies.outcome import Outcome

STUDY_FILE, FINISHED = "study.json", "finished.json"


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        changes: name -> config values by dotted name, added to the common ones.
        title: of the report.
        base: a preset or .yaml file; with `init` in the common values it may be left out.
        common: config values of all runs.
        seeds: every change runs with each; a seed fixes initial weights, data order, times and noise.
        samples: drawn from each run, as its config says.
        penalties: name -> expression, measured on the samples and on real images.
    """

    changes: dict[str, dict[str, Any]]
    title: str = ""
    base: str | None = None
    common: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    samples: int = 1000
    penalties: dict[str, str] = field(default_factory=lambda: {"total_variation": "total_variation"})

    def options(self, change: str, seed: int) -> list[str]:
        """Arguments of `xhat train` for one run, its folder left out."""
        values = {**self.common, **self.changes[change], "seed": seed}
        flat = [part for key, value in values.items() for part in (f"--{key}", _text(value))]
        return ([self.base] if self.base else []) + flat

    def folder(self, out: Path, change: str, seed: int) -> Path:
        """Where a run goes."""
        return out / (re.sub(r"[^a-z0-9]+", "-", change.lower()).strip("-") or "change") / f"seed-{seed}"


def run_study(
    study: Study,
    out: Path,
    measure: Callable[[Path], Mapping[str, float]],
    *,
    jobs: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Train what is not trained yet, measure what is not measured yet. A run that fails leaves the others alone.

    Args:
        study: what to compare.
        out: its folder.
        measure: the quantities of a finished run.
        jobs: runs at a time, each in a process of its own with its share of the cores.
        say: told about each run that ends.
    """
    plan, processes = [(change, seed) for change in study.changes for seed in study.seeds], _Processes()

    def one(job: tuple[str, int]) -> str | None:
        change, seed = job
        failure = _train(study.options(change, seed), study.folder(out, change, seed), jobs, processes)
        say(f"{change}, seed {seed}: {'trained' if failure is None else failure}")
        return failure

    with ThreadPoolExecutor(jobs) as pool:
        try:
            failures = dict(zip(plan, pool.map(one, plan), strict=True))
        except BaseException:
            processes.stop()  # those that Ctrl-C has not reached: they save and end
            raise
    outcomes = []
    for change in study.changes:
        found, failed = {}, {}
        for seed in study.seeds:
            folder, failure = study.folder(out, change, seed), failures[change, seed]
            try:
                found[seed] = {} if failure else dict(measure(folder))
            except (OSError, RuntimeError, ValueError) as error:
                failure = f"not measured: {' '.join(str(error).split())}"
            if failure:
                failed[seed] = failure
            else:
                say(f"{change}, seed {seed}: measured")
        outcomes.append(Outcome.of(change, found, failed, study.seeds))
    return outcomes


class _Processes:
    """The processes of a study; once they are stopped, none is started any more."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: list[str], log: Path, threads: int) -> int:
        """The exit code; output goes to the log."""
        with log.open("w") as file:
            with self._lock:  # a stop comes before the start, or finds the process among those that run
                if self._stopped:
                    return 130
                environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"}
                process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
                self._running.add(process)
            code = process.wait()
        self._running.discard(process)
        return code

    def stop(self) -> None:
        """Ask all to end."""
        with self._lock:
            self._stopped = True
            for process in list(self._running):
                process.terminate()


def _train(options: list[str], folder: Path, jobs: int, processes: _Processes) -> str | None:
    """None once the run's budget is spent; otherwise what went wrong."""
    log = folder.with_suffix(".log")
    finished, wanted = folder / FINISHED, json.dumps(options)
    if finished.exists() and (folder / WEIGHTS).exists():
        return (
            None
            if finished.read_text(encoding="utf-8") == wanted
            else f"{folder} holds a run of another config: choose another --out"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    resume = ["--resume"] if (folder / "config.yaml").exists() else []
    command = [sys.executable, "-m", "xhat", "train", *options, "--run", str(folder), *resume]
    code = processes.run(command, log, threads=max(1, (os.cpu_count() or 1) // jobs))
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"
    write_bytes(finished, wanted.encode())
    return None


def study_to_file(path: Path, study: Study, failed: Mapping[str, Mapping[int, str]]) -> None:
    """Write what is compared, and what failed, for a report."""
    write_bytes(path, json.dumps({"study": asdict(study), "failed": failed}).encode())


def study_from_file(path: Path) -> tuple[Study, dict[str, dict[int, str]]]:
    """What `study_to_file` wrote.

    Raises:
        RunError: the file is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        failed = {change: {int(seed): line for seed, line in of.items()} for change, of in stored["failed"].items()}
        study = Study(**stored["study"])
        if not study.changes or not all(isinstance(own, dict) for own in study.changes.values()):
            raise ValueError("no changes")
        return study, failed
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RunError(f"{path} is damaged: call xhat compare again, which writes it anew and trains nothing twice") from None


def _text(value: Any) -> str:
    """A config value as an option's argument."""
    return json.dumps(value) if isinstance(value, list | dict | bool) or value is None else str(value)
