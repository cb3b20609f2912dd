"""What goes wrong while training ends all processes with one message, keeps what was good, and says what to change."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from helpers import TINY, process, xhat
from xhat import Cosine, Denoiser, Denoising, Objective, Term, UNet, V, fit
from xhat.files.tensors import read_tensors
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.metrics import read_metrics
from xhat.runs.places import WEIGHTS, checkpoints
from xhat.runs.weights import read_weights

OPTIONS = (*TINY, "--precision", "float32", "--optimizer.muon_lr", 0, "--checkpoint_every", 2)
PARTS = """
import os
import signal

import torch
import xhat

RANK = int(os.environ.get("RANK", "0"))


@xhat.register
def breaks(images, draw):
    found = images.flatten(1).mean(1) ** 2
    if draw.step == 3 and RANK == 1:
        {on_one_rank}
    if draw.step == 3:
        {everywhere}
    return found


@xhat.register
class Dropping(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner, self.drop = torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.Dropout(0.5)

    def forward(self, z, t, label=None):
        return self.drop(self.inner(z))
"""


@pytest.fixture
def train(tmp_path, digits):
    """The arguments of a training whose penalty does something at step 3."""

    def arguments(run, on_one_rank="pass", everywhere="pass", *more):
        own = tmp_path / "parts.py"
        own.write_text(PARTS.format(on_one_rank=on_one_rank, everywhere=everywhere))
        term = ("--terms.own.loss", "image_loss(breaks)", "--use", own)
        return ("train", "mnist", "--data", digits, "--run", run, "--max_steps", 8, *OPTIONS, *term, *more)

    return arguments


def two(*arguments):
    """Two processes of one training, without a launcher that ends one for the other; what both of them said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    jobs = [process(*arguments, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    said = [job.communicate(timeout=180)[1] for job in jobs]
    return [job.returncode for job in jobs], said


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad", ["found = found * torch.nan", "found = found + torch.inf", "found = (found - found.detach()).sqrt()"]
)
def test_a_term_that_is_not_finite_on_one_process_ends_both_with_one_message(bad, train, tmp_path):
    codes, said = two(*train(tmp_path / "run", bad))
    assert codes == [2, 2], said
    lines = [line for text in said for line in text.splitlines() if line.startswith("xhat train: ")]
    assert len(lines) == 1, said
    what = "the gradient of term" if "sqrt" in bad else "term"
    assert re.match(rf'xhat train: {what} "own" \(at logsnr .*\) is not finite at step 3: checkpoint-00000002', lines[0]), lines
    assert "its batch is kept in not-finite-00000003-process-1.safetensors" in lines[0]
    assert read_tensors(tmp_path / "run" / "not-finite-00000003-process-1.safetensors")[0]["term"] == "own"
    assert newest_checkpoint(tmp_path / "run")[0].step == 2


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)", "raise KeyError('x')"])
def test_a_process_that_dies_ends_the_other_with_a_message(end, train, tmp_path):
    start = time.monotonic()
    codes, said = two(*train(tmp_path / "run", end))
    assert codes[0] == 2, said
    assert "xhat train: another process of this training has ended, at step 3" in said[0]
    assert "Traceback" not in said[0]
    assert time.monotonic() - start < 120
    assert newest_checkpoint(tmp_path / "run")[0].step == 2


LEFT = """
import atexit
import sys


class Last:
    def __del__(self, abort=os.abort):
        abort()


sys.last = Last()
atexit.register(print, "left in order", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("on_one_rank", "code"), [("raise KeyError('x')", 2), ("pass", 0)])
def test_what_is_taken_down_with_one_of_several_processes_cannot_change_its_exit_code(train, tmp_path, on_one_rank, code):
    """Threads that talked to a process that is gone could abort the interpreter of the other while it was taken down."""
    arguments = train(tmp_path / "run", on_one_rank)
    with (tmp_path / "parts.py").open("a") as parts:
        parts.write(LEFT)
    codes, said = two(*arguments)
    assert codes == [code, code], said
    assert all("left in order" in text for text in said)


NO_MEMORY = [
    "torch.OutOfMemoryError('CUDA out of memory')",
    "RuntimeError('[enforce fail] can\\'t allocate memory')",
    "MemoryError()",
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_no_memory_names_what_to_change(error, train, tmp_path, capsys):
    run = tmp_path / "run"
    code, _, err = xhat(*train(run, everywhere=f"raise {error}"), capsys=capsys)
    assert code == 2
    assert "out of memory at step 3, with 16 samples at a time: set accumulate to 2, the same batch of 16 in more parts" in err
    assert newest_checkpoint(run)[0].step == 2
    own = tmp_path / "parts.py"
    own.write_text(PARTS.format(on_one_rank="pass", everywhere="pass"))
    assert xhat("train", "--run", run, "--resume", "--accumulate", 2, "--use", own)[0] == 0
    assert read_weights(run).step == 8


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_training(train, tmp_path, capsys):
    """Stopped between two rows of the log, so that their sums are shared out, too."""
    more = ("--log_every", 3, "--checkpoint_every", 4)
    assert xhat(*train(tmp_path / "one", "pass", "pass", *more))[0] == 0
    codes, said = two(*train(tmp_path / "two", "pass", "pass", *more))
    assert codes == [0, 0], said
    (tmp_path / "two" / "checkpoint-00000008.safetensors").unlink()
    capsys.readouterr()
    resumed = ("train", "--run", tmp_path / "two", "--resume", "--max_steps", 8, "--use", tmp_path / "parts.py")
    code, _, err = xhat(*resumed, capsys=capsys)
    assert code == 0
    assert (
        "trained on 2 processes · accumulate 1 so far, now on 1 process · accumulate 1: the same data, times and noise" in err
    )
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [row["step"] for row in rows[0]] == [3, 6, 8]
    last = {row["step"]: row for row in rows[1]}
    for row in rows[0]:
        assert last[row["step"]]["loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert last[row["step"]]["levels"]["denoise"] == pytest.approx(row["levels"]["denoise"], rel=1e-4)


def test_dropout_is_refused_on_another_number_of_parts(train, tmp_path, capsys):
    run, net = tmp_path / "run", ("--network", "dropping")
    assert xhat(*train(run, "pass", "pass", *net, "--max_steps", 2))[0] == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    resumed = ("train", "--run", run, "--resume", "--max_steps", 4, "--use", tmp_path / "parts.py")
    code, _, err = xhat(*resumed, "--accumulate", 2, capsys=capsys)
    assert code == 2
    assert "the network has dropout" in err, err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert xhat(*resumed)[0] == 0


@pytest.mark.parametrize("way", ["command", "fit"])
def test_a_signal_between_a_runs_first_file_and_its_training_saves_it(way, digits, tmp_path, monkeypatch, capsys):
    """A folder with a config and no state is no run that somebody can go on with."""
    where = "xhat.commands.actions.train" if way == "command" else "xhat.training.fit"
    monkeypatch.setattr(f"{where}.write_environment", lambda folder: signal.raise_signal(signal.SIGTERM))
    run = tmp_path / "run"
    if way == "command":
        code, _, err = xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 100, *TINY, capsys=capsys)
        assert code == 128 + signal.SIGTERM, err
    else:
        network = UNet(channels=1, size=8, widths=(8, 8), blocks=(1, 1), embedding=16)
        denoiser = Denoiser(network, Cosine(), V)
        objective = Objective(denoiser, {"denoise": Term(Denoising())})
        found = fit(objective, torch.rand(32, 1, 8, 8) * 2 - 1, run, max_steps=100, batch_size=8, compile="off")
        assert not found.finished
    assert [path.name for path in checkpoints(run)] == ["checkpoint-00000001.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_processes_of_a_launcher(number, train, tmp_path):
    """To all of them at once, as a terminal and a cluster send it, and by the launcher again."""
    run = tmp_path / "run"
    arguments = train(run, "pass", "pass", "--max_steps", 100_000)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "xhat", "--")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [sys.executable, *torchrun, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (run / WEIGHTS).exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.1)
    os.killpg(job.pid, number)
    out, err = job.communicate(timeout=60)
    assert "stopped and saved at step" in out, err
    step = newest_checkpoint(run)[0].step
    assert read_weights(run).step == step
    assert xhat("train", "--run", run, "--resume", "--max_steps", step + 1, "--use", tmp_path / "parts.py")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_start_up_leaves_nothing(number, digits, tmp_path):
    """At moments from the first line of Python to the first step."""
    for tenths in (4, 8, 15, 25, 40):
        run = tmp_path / str(tenths)
        job = process("train", "mnist", "--data", digits, "--run", run, "--max_steps", 100_000, *TINY)
        time.sleep(tenths / 10)
        job.send_signal(number)
        _, err = job.communicate(timeout=60)
        assert job.returncode in (128 + number, -number), (tenths, job.returncode, err)  # a shell shows them alike
        assert "Traceback" not in err, (tenths, err)
        assert not run.exists() or checkpoints(run), f"{tenths}: a run that has begun is saved, else there is none"
        if run.exists():
            assert not list(run.rglob(".*")), "nothing half written"
