"""Whatever is lost of a run is made good by a resume, and nothing of it is written over."""

import shutil
import signal
import time

import pytest
import torch
import yaml
from PIL import Image

from helpers import TINY, process, states_equal, xhat
from xhat.config.parsing import read_config
from xhat.files.tensors import read_tensors
from xhat.runs.checkpoint import newest_checkpoint
from xhat.runs.metrics import read_metrics
from xhat.runs.places import WEIGHTS, checkpoints
from xhat.runs.weights import read_weights
from xhat.training import artefacts

OPTIONS = ("--max_steps", 8, *TINY, "--sample_every", 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """A run of eight steps that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert xhat("train", "mnist", "--data", digits, "--run", run, *OPTIONS)[0] == 0
    return run


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


def numbers(run):
    """Of the metrics what does not tell the time."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in read_metrics(run)]


def same(run, whole):
    """Whether two runs hold the same: files, weights, training state, numbers, pictures."""
    names = [sorted(str(p.relative_to(r)) for p in r.rglob("*")) for r in (run, whole)]
    assert names[0] == names[1]
    states = [{k: v for k, v in newest_checkpoint(r)[0].state.items() if k not in ("seconds", "log")} for r in (run, whole)]
    assert states_equal(*states)
    assert states_equal(read_tensors(run / WEIGHTS)[1], read_tensors(whole / WEIGHTS)[1])
    assert numbers(run) == numbers(whole)
    assert all((run / "samples" / p.name).read_bytes() == p.read_bytes() for p in (whole / "samples").iterdir())


@pytest.mark.parametrize(
    "name",
    ["config.yaml", WEIGHTS, "losses.png", "environment.json", "samples/step-00000008.png", "checkpoint-00000004.safetensors"],
)
def test_a_file_that_is_lost_is_made_again(run, whole, name, capsys):
    (run / name).unlink()
    code, _, err = xhat("train", "--run", run, "--resume", capsys=capsys)
    assert code == 0, err
    if name.startswith("checkpoint"):
        assert not (run / name).exists(), "an older state cannot be made again, and nobody needs it"
        return
    same(run, whole)
    if name == "config.yaml":
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_killed_between_the_checkpoint_and_the_weights(run, whole, tmp_path, digits):
    """Weights of step 4 beside a checkpoint of step 8."""
    assert xhat("train", "mnist", "--data", digits, "--run", tmp_path / "half", *OPTIONS, "--max_steps", 4)[0] == 0
    shutil.copy(tmp_path / "half" / WEIGHTS, run / WEIGHTS)
    assert read_weights(run).step == 4
    assert xhat("train", "--run", run, "--resume")[0] == 0
    assert read_weights(run).step == 8
    same(run, whole)


def test_what_killed_writes_left_is_removed_everywhere(run, whole):
    left = [run / f".xhat-{'0' * 16}.partial", run / "samples" / f".xhat-{'1' * 16}.partial"]
    for path in left:
        path.write_bytes(b"half")
    assert xhat("train", "--run", run, "--resume")[0] == 0
    same(run, whole)


@pytest.mark.parametrize("command", ["train", "resume"])
def test_a_lost_config_never_costs_a_checkpoint(run, digits, command, capsys):
    (run / "config.yaml").unlink()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    if command == "train":
        code, _, err = xhat("train", "mnist", "--data", digits, "--run", run, *OPTIONS, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert "holds checkpoint-00000008.safetensors: add --resume to go on from it" in err
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    else:
        assert xhat("train", "--run", run, "--resume", "--max_steps", 9)[0] == 0
        assert read_config(run / "config.yaml").max_steps == 9


@pytest.mark.parametrize(
    "name", ["losses.png", WEIGHTS, "metrics.jsonl", "samples/step-00000500.png", "objects.json", "measured/x"]
)
def test_files_with_the_names_of_a_runs_own_are_not_written_over(tmp_path, digits, name, capsys):
    own = tmp_path / "mine" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    code, _, err = xhat("train", "mnist", "--data", digits, "--run", tmp_path / "mine", *OPTIONS, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1), err
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [own]
    assert own.read_text() == "mine"


def test_a_picture_of_the_users_own_stays(run, capsys):
    Image.new("L", (4, 4)).save(run / "losses.png")
    mine = (run / "losses.png").read_bytes()
    code, _, err = xhat("train", "--run", run, "--resume", "--max_steps", 9, capsys=capsys)
    assert code == 0
    assert "losses.png was not drawn by xhat, and stays" in err
    assert (run / "losses.png").read_bytes() == mine


def test_a_stop_between_two_rows_changes_no_row(tmp_path, digits):
    """The sums in progress are part of the checkpoint: a row after a resume averages what it would have."""
    options = ("--data", digits, *OPTIONS, "--log_every", 3, "--max_steps", 9, "--sample_every", 100, "--checkpoint_every", 4)
    assert xhat("train", "mnist", "--run", tmp_path / "whole", *options)[0] == 0
    assert xhat("train", "mnist", "--run", tmp_path / "broken", *options, "--max_steps", 9)[0] == 0
    for path in (tmp_path / "broken").glob("checkpoint-00000009*"):
        path.unlink()
    assert newest_checkpoint(tmp_path / "broken")[0].step == 8
    assert xhat("train", "--run", tmp_path / "broken", "--resume")[0] == 0
    assert [row["step"] for row in numbers(tmp_path / "broken")] == [3, 6, 9]
    same(tmp_path / "broken", tmp_path / "whole")


def test_an_edited_config_is_refused_where_it_must_stay_and_noted_where_it_may_change(run, capsys):
    path = run / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("batch_size: 16", "batch_size: 8"))
    code, _, err = xhat("train", "--run", run, "--resume", capsys=capsys)
    assert code == 2
    assert "was edited since checkpoint-00000008.safetensors was trained (batch_size: 16 there, 8 here)" in err
    path.write_text(text.replace("max_steps: 8", "max_steps: 9"))
    code, _, err = xhat("train", "--run", run, "--resume", capsys=capsys)
    assert code == 0
    assert "config.yaml was edited, or damaged, since xhat wrote it" in err
    assert read_weights(run).step == 9
    path.write_text("a: [")
    code, _, err = xhat("train", "--run", run, "--resume", capsys=capsys)
    assert code == 2
    assert "remove it, and --resume takes the config of the checkpoint" in err


def test_a_lower_learning_rate_may_be_chosen_at_resume(run):
    slower = ("--optimizer.lr", 1e-5, "--optimizer.muon_lr", 1e-5)
    assert xhat("train", "--run", run, "--resume", "--max_steps", 9, *slower)[0] == 0
    rows = read_metrics(run)
    assert rows[-1]["step"] == 9
    assert float(rows[-1]["lr"]) <= 1e-5
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 1e-5


def test_more_parts_of_a_batch_are_noted_and_dropout_refuses_them(tmp_path, digits, capsys):
    command = ("train", "mnist", "--data", digits, "--run", tmp_path / "run", *OPTIONS, "--precision", "float32")
    assert xhat(*command, "--max_steps", 2)[0] == 0
    capsys.readouterr()
    code, _, err = xhat("train", "--run", tmp_path / "run", "--resume", "--max_steps", 3, "--accumulate", 2, capsys=capsys)
    assert code == 0
    assert "trained on 1 process · accumulate 1 so far, now on 1 process · accumulate 2: the same data, times and noise" in err


def test_weights_that_are_not_finite_are_never_kept(tmp_path, digits, capsys):
    options = ("--optimizer.lr", 1e38, "--optimizer.muon_lr", 0, "--optimizer.warmup_steps", 0, "--checkpoint_every", 1)
    run = tmp_path / "run"
    code, _, err = xhat("train", "mnist", "--data", digits, "--run", run, *OPTIONS, *options, capsys=capsys)
    assert code == 2
    assert "not finite" in err
    for path in checkpoints(run):
        assert all(v.isfinite().all() for v in read_tensors(path)[1].values() if v.is_floating_point())
    if (run / WEIGHTS).exists():
        assert all(v.isfinite().all() for v in read_tensors(run / WEIGHTS)[1].values() if v.is_floating_point())


def test_weights_that_are_not_finite_are_not_sampled_from(run, tmp_path, capsys):
    from xhat.files.tensors import write_tensors

    metadata, tensors = read_tensors(run / WEIGHTS)
    name = next(name for name, value in tensors.items() if value.is_floating_point() and name.startswith("net."))
    tensors[name].view(-1)[0] = torch.nan
    write_tensors(run / WEIGHTS, tensors, metadata)
    code, _, err = xhat("sample", run, "--out", tmp_path / "s.npz", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert f"holds weights that are not finite ({name})" in err


def test_a_long_run_keeps_a_bounded_number_of_pictures(tmp_path, monkeypatch):
    """Those that are left are spread over all of it; the newest is there; what is not ours stays."""
    from xhat.evaluation.pictures import save_grid

    monkeypatch.setattr(artefacts, "MOST_PICTURES", 8)
    (tmp_path / "step-00000003.png").write_text("mine")
    for step in range(2, 402, 2):
        save_grid(torch.zeros(1, 1, 4, 4), tmp_path / f"step-{step:08d}.png", 1, zoom=1)
        artefacts._thin_out(tmp_path, step, 2)
        assert len(list(tmp_path.iterdir())) <= 8 + 2
    kept = sorted(int(p.stem[5:]) for p in tmp_path.iterdir())
    assert kept == [3, 64, 128, 192, 256, 320, 384, 400]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_end_with_the_code_of_the_signal(tmp_path, digits, number):
    run = tmp_path / "run"
    job = process("train", "mnist", "--data", digits, "--run", run, "--max_steps", 100000, *TINY)
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
        assert job.poll() is None, job.stderr.read()
    start = time.monotonic()
    job.send_signal(number)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 128 + number, err
    assert time.monotonic() - start < 30
    assert "Traceback" not in err
    assert newest_checkpoint(run)[0].step == read_weights(run).step > 0
