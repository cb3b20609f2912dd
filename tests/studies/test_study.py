"""Studies: what is refused before anything is trained, what happens to a run that fails, ties."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers import TINY, xhat
from xhat.config.config import Config
from xhat.config.parsing import read_config, write_config
from xhat.studies import run as module
from xhat.studies.outcome import Outcome, best
from xhat.studies.run import run_study
from xhat.studies.study import FINISHED, Study

OPTIONS = {key.removeprefix("--"): value for key, value in zip(TINY[::2], TINY[1::2], strict=True)}


def write(path, digits, changes, **more):
    common = {"data": str(digits), "max_steps": 3, **OPTIONS}
    path.write_text(
        yaml.safe_dump({"base": "mnist", "common": common, "samples": 8, "changes": changes, **more}, sort_keys=False)
    )
    return path


SMOOTH = {"terms.smooth.loss": "image_loss(total_variation, weighting=high_snr(-5))", "terms.smooth.weight": 50.0}


@pytest.mark.slow
def test_a_study_trains_measures_and_goes_on(tmp_path, digits, capsys):
    """One change fails in training: the rest goes on; a second call trains nothing again."""
    broken = {"optimizer.lr": 1e30, "optimizer.muon_lr": 1e30, "optimizer.warmup_steps": 0, "optimizer.grad_clip": 1e30}
    study = write(tmp_path / "s.yaml", digits, {"base": None, "broken": broken})
    out = tmp_path / "out"
    code, stdout, err = xhat("compare", study, "--out", out, "--json", capsys=capsys)
    assert code == 0
    rows = {row["name"]: row for row in json.loads(stdout)["changes"]}
    assert rows["base"]["summary"]["total_variation"]["mean"] > 0
    assert "not finite" in rows["broken"]["failed"]["0"]
    assert rows["broken"]["values"] == {}
    assert "broken, seed 0: " in err
    study.write_text(study.read_text().replace("max_steps: 3", "max_steps: 4"))
    _, stdout, _ = xhat("compare", study, "--out", out, "--json", capsys=capsys)
    assert "another config" in json.loads(stdout)["changes"][0]["failed"]["0"]
    study.write_text(study.read_text().replace("max_steps: 4", "max_steps: 3"))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("ema.safetensors") if "broken" not in str(p)}
    assert xhat("compare", study, "--out", out, capsys=capsys)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("ema.safetensors") if "broken" not in str(p)}


@pytest.mark.slow
def test_distances_are_measured_in_features_of_the_users_own(tmp_path, digits, capsys):
    """Images that no shipped network reads; without the key there is no distance, and no other number changes."""
    (tmp_path / "own.py").write_text("""import torch
import xhat

@xhat.register.features
class Quarters(torch.nn.Module):
    def forward(self, images):
        return torch.stack([part.mean((1, 2, 3)) for part in images.tensor_split(4, -1)], 1)
""")
    found = []
    for more in ({"features": "quarters"}, {}):
        study = write(tmp_path / "s.yaml", digits, {"one": None}, **more)
        code, stdout, err = xhat(
            "compare", study, "--out", tmp_path / "out", "--use", tmp_path / "own.py", "--json", capsys=capsys
        )
        assert code == 0, err
        found.append(json.loads(stdout)["changes"][0]["values"])
    assert found[0]["fid"][0] > 0
    assert {key: value for key, value in found[0].items() if key not in ("fid", "kid", "recall")} == found[1]


@pytest.mark.slow
def test_all_changes_see_the_same_data_weights_and_noise(tmp_path, digits, capsys):
    """Two names for the same config give the same numbers, another seed and another loss others."""
    changes = {"one": None, "two": {"log_every": 2}, "smooth": SMOOTH}
    study = write(tmp_path / "s.yaml", digits, changes, seeds=[0, 1])
    _, stdout, _ = xhat("compare", study, "--out", tmp_path / "out", "--jobs", 2, "--json", capsys=capsys)
    first, second, smooth = (row["values"]["total_variation"] for row in json.loads(stdout)["changes"])
    assert first == second
    assert len({*first, *smooth}) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"changes": {}}, "names no changes"),
        ({"changes": {"a": {"bach_size": 3}}}, 'change "a": unknown'),
        ({"changes": {"a": {"terms.smooth.loss": "image_loss(total_var)"}}}, 'change "a": terms.smooth.loss: unknown name'),
        ({"changes": {"a": 3}}, 'change "a" must be'),
        ({"changes": {"a": None, "A": None}}, "two changes have the same name"),
        ({"changes": {"a": None}, "sedes": [1]}, "unknown key sedes"),
        ({"changes": {"a": None}, "seeds": []}, "seeds must be"),
        ({"changes": {"a": None, "b": {"image_size": 16}}}, "a and b cannot be compared: image_size is None and 16"),
        ({"changes": {"a": None}, "penalties": {"x": "totl"}}, "penalties.x: unknown name"),
        ({"changes": {"a": None}, "penalties": {"x": "ssim"}}, "penalties.x: ssim is no function of images alone"),
        ({"changes": {"a": None}, "features": "nothing"}, 'features: unknown name "nothing"'),
        (
            {"changes": {"a": {"image_size": 40}}, "features": "mnist_features"},
            "the features mnist_features cannot be taken of images",
        ),
        ({"changes": {"a": None}, "base": "mnits"}, "did you mean mnist"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(values, message, tmp_path, capsys):
    study = tmp_path / "s.yaml"
    study.write_text(yaml.safe_dump(values))
    code, stdout, err = xhat("compare", study, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not stdout
    assert not (tmp_path / "out").exists()


def test_a_measurement_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("xhat.studies.run._train", lambda *_: None)

    def measure(folder):
        if "bad" in str(folder):
            raise ValueError("no samples")
        return {"x": 2.0}

    good, bad = run_study(Study({"good": {}, "bad": {}}), tmp_path, measure)
    assert good.values == {"x": [2.0]}
    assert bad.failed == {0: "not measured: no samples"}
    assert math.isnan(bad.mean("x"))


def test_ties_are_differences_seed_by_seed_within_students_interval():
    """Ratios 1.1, 1.25, 1.1: logarithms of 0.138 ± 0.043; with two degrees of freedom 4.3 errors are 0.184, a tie."""
    first = Outcome("a", {"fid": [1.0, 1.2, 1.1]}, {})
    near = Outcome("b", {"fid": [1.1, 1.5, 1.21]}, {})
    steady = Outcome("c", {"fid": [1.1, 1.3, 1.201]}, {})  # the seeds differ more than these two do, every time alike
    assert near.ties(first, "fid")
    assert not Outcome("d", {"fid": [40.0, 110.0, 90.0]}, {}).ties(first, "fid")  # in differences, 79 ± 21 would be one
    negative = Outcome("e", {"kid": [-0.1, 0.1, 0.0]}, {})
    assert negative.ties(Outcome("f", {"kid": [-0.2, 0.1, -0.1]}, {}), "kid")
    assert not steady.ties(first, "fid")
    assert not first.ties(first, "fid")
    assert best([near, first, steady], "fid") is first
    assert best([first], "fid") is None
    assert near.sd("fid") == pytest.approx(statistics.stdev([1.1, 1.5, 1.21]))


def test_one_seed_ties_within_the_error_of_the_images():
    first, near, far = (Outcome(n, {"bits": [b], "bits_se": [0.01]}, {}) for n, b in (("a", 1.0), ("b", 1.02), ("c", 1.04)))
    assert near.ties(first, "bits")
    assert not far.ties(first, "bits")
    assert not Outcome("d", {"fid": [1.0]}, {}).ties(Outcome("e", {"fid": [1.0]}, {}), "fid")


def test_a_seed_that_failed_leaves_its_place():
    outcome = Outcome.of("a", {0: {"x": 1.0}, 2: {"x": 3.0, "y": 1.0}}, {1: "broken"}, [0, 1, 2])
    assert outcome.values["x"] == pytest.approx([1.0, math.nan, 3.0], nan_ok=True)
    assert (outcome.mean("x"), outcome.sd("x")) == (2.0, pytest.approx(math.sqrt(2)))
    other = Outcome("b", {"x": [math.nan, 2.0, 3.5]}, {})
    assert other.ties(outcome, "x")  # one pair is no spread: 2.75 ± 0.75 against 2 ± 1


def test_the_error_of_a_mean_has_two_parts():
    """The images are the same for all seeds, so that their error does not fall with the number of seeds."""
    outcome = Outcome("a", {"bits": [1.0, 1.2], "bits_se": [0.03, 0.03]}, {})
    assert outcome.se("bits") == pytest.approx(math.hypot(0.03, 0.1))
    assert Outcome("a", {"bits": [1.0], "bits_se": [0.03]}, {}).se("bits") == pytest.approx(0.03)


def test_a_change_has_a_folder_of_its_own():
    study = Study({"One step, (gated)!": {}})
    assert study.folder(Path("o"), "One step, (gated)!", 3).as_posix() == "o/one-step-gated/seed-3"
    assert study.runs == [("One step, (gated)!", 0)]


def test_a_changes_values_count_more_than_the_common_ones():
    study = Study({"a": {"optimizer.lr": 1e-4, "init": None}}, base="ddpm", common={"optimizer.lr": 1, "max_steps": 7})
    config = study.config("a", 3)
    assert (config.optimizer.lr, config.seed, config.max_steps, config.sampling.steps) == (1e-4, 3, 7, 1000)


class Train(module._Processes):
    """Stands for the processes: notes the commands, and leaves what training leaves of the config it was given."""

    def __init__(self, code=0):
        super().__init__(held=None)
        self.code, self.commands = code, []

    def run(self, command, log, threads):
        self.commands.append(command)
        recipe, folder = Path(command[5]), Path(command[7])
        folder.mkdir(exist_ok=True)
        write_config(read_config(recipe), folder / "config.yaml")
        (folder / "ema.safetensors").write_text("")
        log.write_text("some progress\nwhat went wrong\n")
        return self.code


def test_a_run_is_trained_from_its_whole_config_and_no_options(tmp_path):
    config, folder, processes = Config(seed=3, max_steps=5), tmp_path / "a" / "seed-3", Train()
    assert module._train(config, folder, 1, processes) is None
    assert processes.commands[0][4:] == ["train", str(tmp_path / "a" / "seed-3.yaml"), "--run", str(folder)]
    assert read_config(tmp_path / "a" / "seed-3.yaml") == config
    assert module._train(config, folder, 1, processes) is None  # it is finished
    assert len(processes.commands) == 1
    said = module._train(replace(config, max_steps=6), folder, 1, processes)
    assert said == f"{folder} holds a run of another config (max_steps: 5 there, 6 here): choose another --out"
    (folder / "config.yaml").write_text("a: [")
    assert "is not YAML" in module._train(config, folder, 1, processes)


def test_a_run_that_failed_is_gone_on_with(tmp_path):
    config, folder = Config(max_steps=5), tmp_path / "a" / "seed-0"
    assert module._train(config, folder, 1, Train(1)) == "what went wrong"
    assert not (folder / FINISHED).exists()
    processes = Train()
    assert module._train(config, folder, 1, processes) is None
    assert processes.commands[0][-1] == "--resume"


def test_a_run_that_an_older_version_finished_is_known_by_its_config(tmp_path):
    """It wrote the options of the command into the file; the run's config says the same."""
    config, folder = Config(max_steps=5), tmp_path / "a" / "seed-0"
    module._train(config, folder, 1, Train())
    (folder / FINISHED).write_text(json.dumps(["mnist", "--max_steps", "5", "--seed", "0"]))
    never = Train()
    assert module._train(config, folder, 1, never) is None
    assert "another config" in module._train(replace(config, seed=1), folder, 1, never)
    assert never.commands == []
