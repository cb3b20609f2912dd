"""The command line as a user meets it: what is written, and one line for every mistake."""

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import TINY, process, write_pngs, xhat
from xhat import load
from xhat.cli import COMMANDS
from xhat.config.parsing import read_config
from xhat.config.presets import preset_names
from xhat.data.idx import mnist
from xhat.runs.places import WEIGHTS


def test_train_writes_what_it_says(tiny_run):
    names = {p.name for p in tiny_run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "losses.png", "samples", WEIGHTS} <= names
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 11))
    assert rows[-1]["images"] == 160
    assert set(rows[0]["terms"]) == {"denoise"}
    assert rows[0]["loss"] == pytest.approx(rows[0]["terms"]["denoise"])
    assert rows[-1]["lr"] < rows[5]["lr"]
    for picture in (tiny_run / "losses.png", *(tiny_run / "samples").iterdir()):
        assert min(Image.open(picture).size) > 100


def test_the_weights_carry_their_config(tiny_run):
    run = load(tiny_run / WEIGHTS)
    assert run.config == read_config(tiny_run / "config.yaml")
    assert (run.shape.channels, run.shape.size, run.shape.classes, run.step) == (1, 8, 4, 10)
    with torch.no_grad():
        assert run.denoiser(torch.randn(2, 1, 8, 8), torch.rand(2)).x0.isfinite().all()


def test_sample_is_reproducible_and_in_the_promised_format(tiny_run, tmp_path):
    for name, n in (("a", 12), ("b", 12), ("c", 5)):
        assert xhat("sample", tiny_run, "--n", n, "--steps", 3, "--seed", 3, "--out", tmp_path / f"{name}.npz")[0] == 0
    a, b, c = (np.load(tmp_path / f"{name}.npz") for name in "abc")
    assert (a["images"].shape, a["images"].dtype) == ((12, 8, 8, 1), np.uint8)
    assert a["labels"].tolist() == [0, 1, 2, 3] * 3
    assert np.array_equal(a["images"], b["images"])
    assert np.abs(a["images"][:5].astype(int) - c["images"]).max() <= 1
    assert Image.open(tmp_path / "a.png").size[0] > 100


@pytest.mark.parametrize("sampler", ["ddpm", "ddim(eta=1)", "euler", "heun", "dpm2m", "leapfrog"])
def test_every_sampler_by_its_name(tiny_run, tmp_path, sampler):
    assert xhat("sample", tiny_run, "--n", 2, "--sampler", sampler, "--steps", 2, "--out", tmp_path / "x.npz")[0] == 0


def test_evaluate_prints_one_json_object(mnist_run, capsys):
    code, out, _ = xhat("evaluate", mnist_run, "--n", 20, "--images", 50, "--json", capsys=capsys)
    assert code == 0
    result = json.loads(out)
    assert {"fid", "kid", "confident", "confident_real", "digits", "penalties", "denoising", "samples"} <= result.keys()
    assert (result["samples"], sum(result["digits"]), result["reference"]) == (20, 20, 10000)
    assert result["confident_real"] > 0.97
    errors = result["denoising"]
    assert errors["logsnr"] == list(range(-8, 9))
    assert errors["x0_error"][0] > errors["x0_error"][-1]
    assert errors["bits_per_dim"] > 0


def test_evaluate_reads_samples_and_other_networks(mnist_run, tmp_path, capsys):
    xhat("sample", mnist_run, "--n", 12, "--out", tmp_path / "s.npz", "--steps", 2)
    test = mnist("test")
    own = tmp_path / "own.py"
    own.write_text("""import torch
import xhat

@xhat.register.features
class Thirds(torch.nn.Module):
    def forward(self, images):
        return torch.stack([part.mean((1, 2, 3)) for part in images.tensor_split(3, -1)], 1)
""")
    np.savez(tmp_path / "real.npz", images=test.pixels[:300, 0].numpy(), labels=test.labels[:300].numpy())
    arguments = ("--samples", tmp_path / "s.npz", "--images", 20, "--features", "thirds", "--use", own)
    arguments += ("--data", tmp_path / "real.npz")
    code, out, _ = xhat("evaluate", mnist_run, *arguments, capsys=capsys)
    assert code == 0
    assert "12 samples against 300 held-out images" in out
    assert "features: thirds" in out


def test_evaluate_without_a_feature_network_says_so(tiny_run, capsys):
    code, out, _ = xhat("evaluate", tiny_run, "--n", 4, "--images", 10, capsys=capsys)
    assert code == 0
    assert "no feature network" in out


def test_a_colour_folder_trains_with_one_changed_option(tmp_path):
    folder = write_pngs(tmp_path / "images", 20, (18, 16))
    assert xhat("train", "mnist", "--run", tmp_path / "run", "--max_steps", 2, *TINY, "--data", folder)[0] == 0
    assert xhat("sample", tmp_path / "run", "--n", 3, "--out", tmp_path / "s.npz")[0] == 0
    assert np.load(tmp_path / "s.npz")["images"].shape == (3, 16, 16, 3)


def test_two_terms_are_logged_apart(tmp_path, digits):
    options = (
        "--terms.smooth.loss",
        "image_loss(total_variation)",
        "--terms.smooth.weight",
        0.5,
        "--terms.smooth.when",
        "every(2)",
    )
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--run", run, "--data", digits, "--max_steps", 4, *TINY, *options)[0] == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert ["smooth" in r["terms"] for r in rows] == [True, False, True, False]
    assert rows[0]["loss"] == pytest.approx(rows[0]["terms"]["denoise"] + 0.5 * rows[0]["terms"]["smooth"], rel=1e-5)


def test_accumulated_micro_batches_are_the_whole_batch(tmp_path, digits):
    rows = []
    for name, parts in (("whole", 1), ("parts", 4)):
        command = ("train", "mnist", "--run", tmp_path / name, "--data", digits, "--max_steps", 3, *TINY)
        assert xhat(*command, "--accumulate", parts, "--precision", "float32", "--optimizer.muon_lr", 0)[0] == 0
        rows.append([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    for a, b in zip(*rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("budget", [("--max_images", 33), ("--max_minutes", 0.005)])
def test_budgets_in_images_and_minutes(tmp_path, digits, budget):
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--run", run, "--data", digits, *TINY, *budget)[0] == 0
    step = load(run).step
    assert step == 3 if budget[0] == "--max_images" else step >= 1


def few_digits(split, whole=mnist):
    """The first images of MNIST: mistakes are the same with few."""
    images = whole(split)
    return replace(images, pixels=images.pixels[:50], labels=images.labels[:50])


def test_evaluation_measures_the_runs_own_penalty_and_says_what_it_compares_with(tmp_path, digits, capsys):
    run = tmp_path / "run"
    options = ("--terms.smooth.loss", "image_loss(total_variation)", "--terms.smooth.weight", 0.1, "--max_steps", 2)
    assert xhat("train", "mnist", "--run", run, "--data", digits, *TINY, *options)[0] == 0
    _, out, _ = xhat("evaluate", run, "--n", 4, "--images", 4, "--json", capsys=capsys)
    result = json.loads(out.splitlines()[-1])
    assert result["penalties"]["smooth"] == result["penalties"]["total_variation"] > 0
    assert result["reference_is"] == "training images"


@pytest.mark.slow
def test_training_survives_a_reader_that_goes_away(tmp_path, digits):
    """`xhat train ... 2> >(head -1)`: the progress has nobody to read it."""
    job = process("train", "mnist", "--run", tmp_path / "run", "--data", digits, "--max_steps", 30, *TINY)
    job.stderr.close()
    assert job.wait(timeout=120) == 0
    assert load(tmp_path / "run").step == 30


MISTAKES = {
    "unknown preset": (("train", "mnits", "--run", "RUN"), "did you mean mnist"),
    "unknown command": (("tarin",), "did you mean train"),
    "misspelt option": (("train", "mnist", "--run", "RUN", "--max_step", "3"), "did you mean --max_steps"),
    "misspelt dotted option": (("train", "mnist", "--run", "RUN", "--optimizer.lrr", "3"), "did you mean --optimizer.lr"),
    "wrong type": (("train", "mnist", "--run", "RUN", "--max_steps", "many"), "max_steps: expected int"),
    "wrong choice": (("train", "mnist", "--run", "RUN", "--precision", "fp8"), "precision: expected one of"),
    "no run": (("train", "mnist"), "--run is needed"),
    "no sample": (("sample", "--n", "3"), "RUN, --out is needed"),
    "empty run": (("train", "mnist", "--run", ""), "--run is empty"),
    "empty data": (("train", "mnist", "--run", "RUN", "--data", ""), "data is empty"),
    "no batch": (("train", "mnist", "--run", "RUN", "--batch_size", "0"), "batch_size must be at least 1"),
    "no steps": (("train", "mnist", "--run", "RUN", "--max_steps", "0"), "max_steps must be at least 1"),
    "no time": (("train", "mnist", "--run", "RUN", "--max_minutes", ".nan"), "max_minutes must be at least"),
    "no log": (("train", "mnist", "--run", "RUN", "--log_every", "0"), "log_every must be at least 1"),
    "negative clip": (("train", "mnist", "--run", "RUN", "--optimizer.grad_clip", "-1"), "optimizer.grad_clip"),
    "dropout": (("train", "mnist", "--run", "RUN", "--label_dropout", "2"), "label_dropout must be in [0, 1]"),
    "betas": (("train", "mnist", "--run", "RUN", "--optimizer.betas", "[2,3]"), "optimizer.betas"),
    "sampler": (("train", "mnist", "--run", "RUN", "--sampling.sampler", "dimm"), "did you mean ddim"),
    "sampler type": (("train", "mnist", "--run", "RUN", "--sampling.sampler", "5"), "no sampler"),
    "steps of the grid": (("train", "mnist", "--run", "RUN", "--schedule", "linear_beta(5)"), "cannot take 8 steps"),
    "no network": (("train", "mnist", "--run", "RUN", "--network", "5"), "is no network"),
    "no such widths": (("train", "mnist", "--run", "RUN", "--network", "unet(widths=8)"), "several ints"),
    "no heads": (("train", "mnist", "--run", "RUN", "--network", "dit(heads=0)"), "dit:"),
    "classes": (("train", "mnist", "--run", "RUN", "--network", "unet(classes=5)"), "has 5 classes"),
    "outputs": (("train", "mnist", "--run", "RUN", "--network", "unet(outputs=3)"), "expected 1 channels"),
    "no loss": (("train", "mnist", "--run", "RUN", "--terms.denoise.loss", "squared"), "is no loss"),
    "no space": (("train", "mnist", "--run", "RUN", "--terms.denoise.loss", "denoising(space=5)"), "denoising:"),
    "term without loss": (("train", "mnist", "--run", "RUN", "--terms.other.weight", "2"), "terms.other.loss is needed"),
    "time input": (
        ("train", "mnist", "--run", "RUN", "--schedule", "flow", "--time_input", "log_sigma"),
        "time_input is infinite",
    ),
    "folder as recipe": (("train", "FOLDER", "--run", "RUN"), "with --data"),
    "unknown schedule": (("train", "mnist", "--run", "RUN", "--schedule", "cosin"), "did you mean cosine"),
    "wrong argument": (("train", "mnist", "--run", "RUN", "--network", "unet(width=3)"), "widths=(32, 64)"),
    "channels": (("train", "mnist", "--run", "RUN", "--network", "unet(channels=3)"), "the data have 1"),
    "size": (("train", "mnist", "--run", "RUN", "--image_size", "30"), "set image_size"),
    "singular target": (
        ("train", "mnist", "--run", "RUN", "--schedule", "zero_terminal(linear_beta)", "--target", "noise"),
        "predict V",
    ),
    "step target in continuous time": (("train", "mnist", "--run", "RUN", "--target", "step_noise"), "Discrete"),
    "ema": (("train", "mnist", "--run", "RUN", "--ema", "0.9"), "ema must be in"),
    "batch": (("train", "mnist", "--run", "RUN", "--accumulate", "3"), "multiple of"),
    "missing data": (("train", "mnist", "--run", "RUN", "--data", "nowhere"), "does not exist"),
    "missing config": (("train", "nowhere.yaml", "--run", "RUN"), "does not exist"),
    "nothing to resume": (("train", "--run", "RUN", "--resume"), "no run to resume"),
    "sample without a run": (("sample", "RUN", "--out", "x.npz"), "does not exist"),
    "evaluate without a run": (("evaluate", "RUN"), "does not exist"),
    "inspect nothing": (("inspect", "edn"), "did you mean edm"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, hint = MISTAKES[name]
    monkeypatch.setattr("xhat.data.load.mnist", lambda split: few_digits(split))
    arguments = [str(Path(__file__).parent) if a == "FOLDER" else a for a in arguments]
    code, out, err = xhat(*("absent/run" if a == "RUN" else a for a in arguments), capsys=capsys)
    assert code == 2
    assert hint in err
    assert err.startswith("xhat")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--out", "x.png"), "must end in .npz"),
        (("--out", "no/such/x.npz"), "does not exist"),
        (("--out", "x.npz", "--n", "0"), "at least 1"),
        (("--out", "x.npz", "--sampler", "dimm"), "did you mean ddim"),
        (("--out", "x.npz", "--steps", "0"), "cannot take 0 steps"),
    ],
)
def test_mistakes_of_sampling(tiny_run, arguments, hint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = xhat("sample", tiny_run, *arguments, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert hint in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "holds no config"),
        ("tarket: v", "did you mean target"),
        ("max_steps: x", "expected int"),
    ],
)
def test_broken_config_files(text, hint, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    code, _, err = xhat("train", tmp_path / "c.yaml", "--run", tmp_path / "run", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert hint in err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_not_overwritten(tiny_run, capsys):
    before = (tiny_run / "config.yaml").read_text()
    code, _, err = xhat("train", "mnist", "--run", tiny_run, "--max_steps", 3, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "add --resume" in err
    code, _, err = xhat("train", "ddpm", "--run", tiny_run, "--resume", "--max_steps", 30, capsys=capsys)
    assert code == 2
    assert "another config" in err
    assert (tiny_run / "config.yaml").read_text() == before


def test_a_damaged_weights_file_is_named(tiny_run, tmp_path, capsys):
    cut = tmp_path / WEIGHTS
    cut.write_bytes((tiny_run / WEIGHTS).read_bytes()[:500])
    code, _, err = xhat("sample", cut, "--out", tmp_path / "x.npz", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "damaged" in err


def test_a_loss_that_is_not_finite_stops_and_names_the_term(tmp_path, digits, capsys):
    """A huge learning rate; the state before the bad step is kept and can be sampled from."""
    run = tmp_path / "run"
    options = ("--optimizer.lr", "1e30", "--optimizer.muon_lr", 0, "--optimizer.warmup_steps", 0, "--ema", 0, "--max_steps", 50)
    code, _, err = xhat("train", "mnist", "--run", run, "--data", digits, *TINY, *options, capsys=capsys)
    assert code == 2
    assert re.search(r'^xhat train: term "denoise" \(at logsnr .*\) is not finite at step \d+: checkpoint-', err, re.MULTILINE)
    assert "its batch is kept in not-finite-" in err
    assert "Traceback" not in err
    assert all(p.isfinite().all() for p in load(run).denoiser.parameters())


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, digits):
    """A file-size limit stands in for the full disk: a checkpoint written under it survives the failure of the next ones."""
    run = tmp_path / "run"
    command = ("train", "mnist", "--run", run, "--data", digits, *TINY)
    assert xhat(*command, "--max_steps", 4)[0] == 0
    before = {p.name: p.read_bytes() for p in run.glob("*.safetensors")}
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    limited = f"{limit}; from xhat.cli import main; sys.exit(main())"
    job = process("train", "--run", run, "--resume", "--max_steps", 8, launcher=("-c", limited))
    _, err = job.communicate(timeout=120)
    assert job.returncode == 2, err
    assert "cannot read or write" in err
    assert "File too large" in err
    assert "Traceback" not in err
    assert {p.name: p.read_bytes() for p in run.glob("*.safetensors")} == before
    assert not list(run.glob(".*"))


def test_help_is_there_for_everything(capsys):
    code, out, _ = xhat("--help", capsys=capsys)
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert all(name in out for name in preset_names())
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            xhat(command, "--help")
        assert stopped.value.code == 0
        assert "usage: xhat" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys):
    import xhat as package

    assert xhat("--version", capsys=capsys)[1].strip() == f"xhat {package.__version__}"


def test_presets_hold_no_defaults_in_disguise():
    """Each preset says what it is and where it comes from."""
    for name in preset_names():
        assert (files("xhat.config.presets") / f"{name}.yaml").read_text().startswith("# ")
