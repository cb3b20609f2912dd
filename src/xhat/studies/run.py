"""The runs of a study: each trained in a process of its own, then measured; what is done already is not done again."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xhat.budgets import cores
from xhat.config.changes import differences
from xhat.config.config import Config
from xhat.config.parsing import write_config
from xhat.config.use import used_files
from xhat.distributed import child_environment
from xhat.files.values import write_values
from xhat.runs.places import CONFIG_FILE, WEIGHTS, checkpoints
from xhat.runs.recipe import read_run_config
from xhat.studies.outcome import Outcome
from xhat.studies.study import FINISHED, Study

Say = Callable[[str], None]
Run = tuple[str, int]


def run_study(
    study: Study,
    out: Path,
    measure: Callable[[Path], Mapping[str, float]],
    *,
    jobs: int = 1,
    say: Say = lambda _: None,
    held: int | None = None,
) -> list[Outcome]:
    """Train what is not trained yet, measure what is not measured yet. A run that fails leaves the others alone.

    Args:
        study: what to compare.
        out: its folder.
        measure: the quantities of a finished run.
        jobs: runs at a time, each in a process of its own with its share of the cores.
        say: told about each run that ends.
        held: the open lock file of the study's folder, which stays reserved until the last training has ended.
    """
    failures = _trained(study, out, jobs, say, held)
    outcomes = []
    for change in study.changes:
        found, failed = {}, {}
        for seed in study.seeds:
            failure = failures[change, seed]
            try:
                found[seed] = {} if failure else dict(measure(study.folder(out, change, seed)))
            except (OSError, RuntimeError, ValueError) as error:
                failure = f"not measured: {' '.join(str(error).split())}"
            if failure:
                failed[seed] = failure
            else:
                say(f"{change}, seed {seed}: measured")
        outcomes.append(Outcome.of(change, found, failed, study.seeds))
    return outcomes


def _trained(study: Study, out: Path, jobs: int, say: Say, held: int | None) -> dict[Run, str | None]:
    """What went wrong with each run, None if nothing did, once all of them have ended."""
    configs, processes = {run: study.config(*run) for run in study.runs}, _Processes(held)

    def one(run: Run) -> str | None:
        failure = _train(configs[run], study.folder(out, *run), jobs, processes)
        say(f"{run[0]}, seed {run[1]}: {'trained' if failure is None else failure}")
        return failure

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return dict(zip(study.runs, pool.map(one, study.runs), strict=True))
        except BaseException:
            processes.stop()  # those that Ctrl-C has not reached: they save and end
            raise


class _Processes:
    """The processes of a study; they end with this one, and once they are stopped, none is started any more.

    Args:
        held: an open file that each of them inherits.
    """

    def __init__(self, held: int | None) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._inherited = () if held is None or sys.platform == "win32" else (held,)
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: list[str], log: Path, threads: int) -> int:
        """The exit code; output goes to the log."""
        with log.open("w") as file:
            with self._lock:  # a stop comes before the start, or finds the process among those that run
                if self._stopped:
                    return 130
                environment = child_environment(OMP_NUM_THREADS=str(threads), PYTHONIOENCODING="utf-8")
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment, pass_fds=self._inherited
                )
                self._running.add(process)
            code = process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._running.discard(process)
        return code

    def stop(self) -> None:
        """Ask all to end."""
        with self._lock:
            self._stopped = True
            for process in list(self._running):
                process.terminate()


def _train(config: Config, folder: Path, jobs: int, processes: _Processes) -> str | None:
    """None once the run's budget is spent; otherwise what went wrong. The config, whole, stands beside the folder."""
    if (folder / FINISHED).exists() and (folder / WEIGHTS).exists():
        return _of_another_config(config, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe, log = folder.with_suffix(".yaml"), folder.with_suffix(".log")
    write_config(config, recipe)
    begun = folder.is_dir() and ((folder / CONFIG_FILE).exists() or checkpoints(folder))
    resume = ["--resume"] if begun else []
    used = [word for file in used_files() for word in ("--use", str(file.path))]
    command = [sys.executable, "-P", "-m", "xhat", "train", str(recipe), "--run", str(folder), *resume, *used]
    code = processes.run(command, log, threads=max(1, cores() // jobs))
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"
    write_values(folder / FINISHED, {})  # that it is there says all: the run's own config says of what
    return None


def _of_another_config(config: Config, folder: Path) -> str | None:
    """What to say of a finished run that was trained with another config than is wanted now."""
    try:
        changed = differences(read_run_config(folder), config)
    except (OSError, ValueError) as error:
        return f"{error}: choose another --out"
    return f"{folder} holds a run of another config ({'; '.join(changed[:3])}): choose another --out" if changed else None
