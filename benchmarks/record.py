"""Store what a command prints, so that the documentation can quote it: docs/results/NAME.txt.

usage: python benchmarks/record.py NAME [--after "COMMAND"]... [--into FOLDER] -- COMMAND...

COMMAND is `xhat ...` or `python benchmarks/...`, run from the repository's root. Above its output the file says what was run,
after which commands, on what kind of machine, and when. A command that fails leaves no file. tests/test_pages.py compares
the pages with these files. `make bench` stores its own in runs/bench.
"""

import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from usage import Parser, guarded

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
WIDTH = "130"  # of tables


def machine() -> str:
    """The kind of machine, without a name that belongs to one alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    widest = torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX-512")
    threads = torch.get_num_threads()
    return f"{cores} core{'s' if cores != 1 else ''}, {_model()} ({widest}), {threads} thread{'s' if threads > 1 else ''}{gpu}"


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def runnable(command: list[str]) -> list[str]:
    """The command with this interpreter.

    Raises:
        SystemExit: it is neither `xhat` nor `python`, which is all that the pages show.
    """
    start = {"xhat": [sys.executable, "-m", "xhat"], "python": [sys.executable]}.get(command[0] if command else "")
    if start is None:
        raise SystemExit("record: give the command as xhat ... or python ..., after --")
    return [*start, *command[1:]]


def stored(command: list[str], after: list[str], output: str) -> str:
    """The text of the file; paths inside the repository are relative, lines have no trailing blanks."""
    head = [*(f"after: {earlier}" for earlier in after), f"$ {shlex.join(command)}"]
    head += [f"machine: {machine()}", f"date: {datetime.date.today().isoformat()}", ""]
    body = [line.rstrip() for line in output.replace(f"{ROOT}/", "").strip("\n").splitlines()]
    return "\n".join([*head, *body, ""])


def main() -> None:
    """Run and store."""
    parser = Parser(description="store what a command prints, in docs/results")
    parser.add_argument("name", help="of the file")
    parser.add_argument(
        "--after", action="append", default=[], metavar="COMMAND", help="what was run before, with the same options"
    )
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="in place of docs/results")
    own, _, command = " ".join(map(shlex.quote, sys.argv[1:])).partition(" -- ")
    options, words = parser.parse_args(shlex.split(own)), shlex.split(command)
    environment = {**os.environ, "COLUMNS": WIDTH}
    lines = []
    with subprocess.Popen(runnable(words), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if running.returncode:
        raise SystemExit(f"record: {words[0]} ended with {running.returncode}, nothing is stored")
    into = options.into or RESULTS
    into.mkdir(parents=True, exist_ok=True)
    path = into / f"{options.name}.txt"
    path.write_text(stored(words, options.after, "".join(lines)))
    print(f"stored: {path.name}")


if __name__ == "__main__":
    guarded(main)
