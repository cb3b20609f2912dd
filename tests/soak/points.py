"""Run with faults.c preloaded: a command fails, or is killed, at chosen points or moments; then it is repeated, and what it
left is compared. Or two commands run at once in one folder.

A job on stdin, results on stdout, both JSON. Each command is run in a fork of this process, which has imported all there is.
"""

import contextlib
import ctypes
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure
import numpy as np
import torch
import torch._dynamo  # an optimizer's first step imports it

import xhat.commands.actions.evaluate
import xhat.commands.actions.report
import xhat.commands.actions.sample
import xhat.commands.actions.train
import xhat.training.train  # noqa: F401
from xhat.cli import main
from xhat.errors import XhatError
from xhat.evaluation import quality  # noqa: F401
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.metrics import read_metrics
from xhat.runs.places import WEIGHTS
from xhat.runs.weights import read_weights
from xhat.tensors import bytes_of

torch.set_num_threads(1)
KINDS = ("create", "open", "write", "sync", "rename", "unlink", "link", "mkdir", "read")
LONGEST = 120
MOMENT = "moment"
"""A kind of point: killed once so much of the time has passed that a whole run takes."""
faults = ctypes.CDLL(os.environ["LD_PRELOAD"])
faults.fault_seen.restype = ctypes.c_long
faults.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int)


def run(command: list[str], below: Path, kind: int = -1, at: int = -1, fault: int = 0, seconds: float = LONGEST) -> dict:
    """A command in a fork: how it ended; it is killed after so many seconds."""
    return ended(*started(command, below, Path(f"{below}-said"), kind, at, fault), seconds)


def started(command: list[str], below: Path, said: Path, kind: int = -1, at: int = -1, fault: int = 0) -> tuple[int, Path]:
    """The process of a command, and the file where it writes what it said; calls below a folder count."""
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        out, err = io.StringIO(), io.StringIO()
        code, counts = 99, []
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                faults.fault_arm(str(below).encode(), kind, at, fault)
                code = main(command)
        except BaseException:
            err.write(traceback.format_exc())
        finally:
            counts = [faults.fault_seen(k) for k in range(len(KINDS))]
            faults.fault_arm(b"", -1, -1, 0)
            said.write_text(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "counts": counts}))
            os._exit(0)
    return child, said


def ended(child: int, said: Path, seconds: float = LONGEST) -> dict:
    """Its exit code, or minus the signal; what it said; how many calls of each kind there were; the seconds it took."""
    start = time.monotonic()
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() - start > seconds:
            os.kill(child, signal.SIGKILL)
            if seconds >= LONGEST:
                os.waitpid(child, 0)
                return {"code": "hangs", "out": "", "err": "", "counts": []}
        time.sleep(0.002)
    _, status = os.waitpid(child, 0)
    took = {"seconds": time.monotonic() - start}
    if os.WIFSIGNALED(status):
        return {"code": -os.WTERMSIG(status), "out": "", "err": "", "counts": [], **took}
    return {**json.loads(said.read_text()), **took}


def plain(value: object) -> object:
    """A state without what tells the time, as something that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), bytes(bytes_of(value))
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in ("seconds", "mark")}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def left(work: Path, timed: Sequence[str] = ()) -> dict[str, object]:
    """All that a command left below a folder, by name, without what tells the time: of files so called, that they are there."""
    found: dict[str, object] = {}
    for path in sorted(work.rglob("*")):
        name = str(path.relative_to(work))
        if path.is_dir():
            found[name] = "folder"
        elif path.name.startswith("checkpoint-") and path.suffix == ".safetensors":
            found[name] = plain(newest_checkpoint(path.parent)[0].state)
        elif path.name == WEIGHTS:
            found[name] = (read_weights(path).step, plain(read_weights(path).tensors))
        elif path.name == "metrics.jsonl":
            of_time = ("seconds", "images_per_second")
            found[name] = [{k: v for k, v in row.items() if k not in of_time} for row in read_metrics(path.parent)]
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays.files}
        elif path.name in ("measured.json", "environment.json") or path.name in timed:
            found[name] = path.name
        else:
            found[name] = path.read_bytes()
    return found


def repeated(job: dict, work: Path) -> dict:
    """The command again, or what it says to do instead."""
    again = run(job["command"], work)
    while again["code"] == 2 and "another process is" in again["err"]:  # children of what was killed, which save and end
        again = run(job["command"], work)
    if again["code"] == 2 and "add --resume" in again["err"]:
        again = run(job["resume"], work)
    return again


def tried(job: dict, work: Path, whole: dict, point: list) -> list[str]:
    """What is wrong with a point: nothing, if all is well."""
    kind, at, fault = point
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(job["template"], work)
    before = newest_checkpoint(work / "run")[0] if (work / "run").exists() else None
    if kind == MOMENT:
        first = run(job["command"], work, seconds=at * whole["seconds"])
    else:
        first = run(job["command"], work, KINDS.index(kind), at, fault)
    killed, done = first["code"] == -signal.SIGKILL, first["code"] == 0
    wrong = []
    if killed != (fault <= 0) and not done:
        wrong.append(f"exit code {first['code']}: {first['err'][-300:]}")
    elif not killed and not done and not (first["code"] == 2 and names_it(first["err"], work)):
        wrong.append(f"exit code {first['code']}, not one line that names the file: {first['err'][-300:]}")
    try:
        now = newest_checkpoint(work / "run")[0] if (work / "run").exists() else None
        if before is not None and (now is None or now.step < before.step):
            wrong.append("the previous state is lost")
    except (XhatError, OSError) as error:
        wrong.append(f"the previous state does not load: {error}")
    if done and all_is_there(job, first, work, whole):
        return wrong
    if done and str(work) not in first["err"]:  # a measurement is not lost with its picture, but a line says so
        wrong.append("done, but not all is there, and no line names what is not")
    again = repeated(job, work)
    if killed and again["code"] == 2 and "exists already" in again["err"] and all_is_left(job, work, whole):
        return wrong  # killed after the last write: nothing was left to do
    if again["code"] != 0:
        wrong.append(f"does not complete: {again['code']} {again['err'][-300:]}")
    elif not all_is_there(job, again, work, whole):
        found = left(work, job["timed"])
        names = sorted(found.keys() ^ whole["left"].keys())
        differ = [name for name in found if name in whole["left"] and found[name] != whole["left"][name]]
        wrong.append(f"left behind or missing: {names}; differ: {differ}; prints {again['out'][:300]!r}")
    return wrong


def names_it(err: str, work: Path) -> bool:
    """Whether a failed command says one line, with the name of the file."""
    lines = [line for line in err.splitlines() if line.startswith("xhat ")]
    return len(lines) == 1 and str(work) in lines[0]


def all_is_there(job: dict, end: dict, work: Path, whole: dict) -> bool:
    """Whether a command left, and printed, what a whole one does."""
    return all_is_left(job, work, whole) and (end["out"] == whole["out"] or not job["compare_out"])


def all_is_left(job: dict, work: Path, whole: dict) -> bool:
    return left(work, job["timed"]) == whole["left"]


def together(job: dict, work: Path) -> list[dict]:
    """Two commands at once: how each ended, and whether what they left can be read."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(job["template"], work)
    both = [started(command, work, Path(f"{work}-said-{i}")) for i, command in enumerate(job["together"])]
    found = [ended(*one) for one in both]
    left(work)  # every reader of ours reads what is there
    return found


def served(job: dict) -> dict:
    """The calls that a whole run makes, and what is wrong with each point; or how two commands at once ended."""
    work = Path(job["work"])
    if "together" in job:
        return {"ended": together(job, work), "left": sorted(str(path.relative_to(work)) for path in work.rglob("*"))}
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(job["template"], work)
    done = run(job["command"], work)
    assert done["code"] == 0, done
    whole = {"out": done["out"], "seconds": done["seconds"], "left": left(work, job["timed"])}
    wrong = {str(point): found for point in job["points"] if (found := tried(job, work, whole, point))}
    return {"counts": dict(zip(KINDS, done["counts"], strict=True)), "wrong": wrong}


with io.BytesIO() as picture:  # fonts are looked up once
    matplotlib.figure.Figure(layout="constrained").add_subplot().figure.savefig(picture)
print(json.dumps(served(json.loads(sys.stdin.read()))))
