"""xhat report: a run, runs, a study, training that is watched; and what is refused."""

import json
import math
import re
import signal
import threading

import pytest
import torch
import yaml

from helpers import TINY, write_digits, xhat
from xhat.commands.actions import report as module
from xhat.config.build import build_denoiser
from xhat.config.parsing import read_config, write_config
from xhat.data.shape import DataShape
from xhat.evaluation.denoising import LEVELS
from xhat.report import of_study
from xhat.report.comparable import common_levels
from xhat.report.contents import Line
from xhat.report.measured import FOLDER, Measured
from xhat.report.of_study import study_contents, study_how
from xhat.runs.recipe import config_with
from xhat.runs.weights import save_weights
from xhat.studies.run import run_study
from xhat.studies.study import FINISHED, STUDY_FILE, Study, study_to_file

OPTIONS = {key.removeprefix("--"): value for key, value in zip(TINY[::2], TINY[1::2], strict=True)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "images.npz", 400)


def write_weights(folder, step, config=None):
    config = config or read_config(folder / "config.yaml")
    shape = DataShape(1, 8, None)
    torch.manual_seed(0)
    save_weights(folder / "ema.safetensors", build_denoiser(config, shape).state_dict(), config, shape, step)


def write_metrics(folder, *progress, end=""):
    rows = [
        {"step": i + 1, "images": 16 * (i + 1), "seconds": 1.0, "images_per_second": 100.0, "loss": 1.0, "progress": share}
        for i, share in enumerate(progress)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)


def new_run(folder, data, changes=None, progress=(0.5, 1.0), config=None):
    """A run folder as training leaves it, with random weights."""
    own = {"data": str(data), "labels": False, "max_steps": 2, **OPTIONS, **(changes or {})}
    config = config or config_with("mnist", own)
    folder.mkdir(parents=True)
    write_config(config, folder / "config.yaml")
    write_metrics(folder, *progress)
    if progress[-1] >= 1:
        write_weights(folder, len(progress), config)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory, images):
    """Two runs whose last parts are the same, measured once in this module."""
    place = tmp_path_factory.mktemp("runs")
    smooth = {"terms.smooth.loss": "image_loss(total_variation)", "terms.flat.loss": "image_loss(laplacian)"}
    return new_run(place / "one" / "run", images), new_run(place / "two" / "run", images, smooth)


def test_one_run(two, images, tmp_path, capsys):
    out = tmp_path / "page.html"
    code, stdout, err = xhat("report", two[0], "--n", 8, "--out", out, capsys=capsys)
    assert (code, stdout, err) == (0, f"report: {out}\n", "")
    page = out.read_text()
    assert "<title>xhat report: run</title>" in page
    assert f"data: {images}; up to 500 held-out images at noise levels logsnr -8 to 8; 8 samples each" in page
    assert 'http-equiv="refresh"' not in page
    assert len(re.findall('<img[^>]*alt="samples of run"', page)) == 1
    assert len(re.findall('<img[^>]*alt="x0_hat on the way to samples of run"', page)) == 1
    stored = json.loads((two[0] / FOLDER / "measured.json").read_text())
    assert f"{stored['found']['numbers']['bits']:.1f}" in page
    before = {p: p.stat().st_mtime_ns for p in two[0].rglob("*")}
    assert xhat("report", two[0], "--n", 8, "--out", out)[0] == 0
    assert out.read_text() == page
    assert {p: p.stat().st_mtime_ns for p in two[0].rglob("*")} == before


def test_two_runs_of_one_name_are_called_by_their_paths(two, tmp_path):
    """Measured with the same penalties, those that one of them was trained with included."""
    out = tmp_path / "page.html"
    assert xhat("report", *two, "--n", 8, "--out", out)[0] == 0
    page = out.read_text()
    assert "<title>xhat report</title>" in page
    assert all(str(folder) in page for folder in two)
    stored = [json.loads((folder / FOLDER / "measured.json").read_text()) for folder in two]
    assert stored[0]["how"] == stored[1]["how"]
    penalties = {"total_variation": "total_variation", "smooth": "image_loss(total_variation)", "flat": "image_loss(laplacian)"}
    assert stored[0]["how"]["penalties"] == penalties
    assert set(penalties) <= set(stored[0]["found"]["numbers"])


@pytest.fixture
def quick(monkeypatch):
    """`measured` that notes the folder and how."""
    seen = []

    def measured(run, how):
        seen.append((run, how))
        line = Line([-1.0, 1.0], [1.0, 1.0])
        return Measured(
            2, {"bits": 3.0 + len(seen), "bits_se": 0.1}, {"total_variation": 0.5}, {"x0_error": line}, [1.0], [], True
        )

    monkeypatch.setattr("xhat.report.of_runs.measured", measured)
    monkeypatch.setattr("xhat.report.of_study.measured", measured)
    return seen


def test_runs_of_other_schedules_are_measured_where_all_have_levels(images, quick, tmp_path):
    runs = [
        new_run(tmp_path / "narrow", images, {"schedule": "linear_logsnr(-5, 6)"}),
        new_run(tmp_path / "wide", images),
        new_run(tmp_path / "flat", images, {"schedule": "linear_logsnr(-0.3, 0.3)"}),  # has none, and takes none from others
    ]
    assert common_levels(runs[1:2]) == LEVELS
    assert xhat("report", *runs, "--out", tmp_path / "page.html")[0] == 0
    assert [run for run, _ in quick] == runs
    assert {how.logsnr for _, how in quick} == {tuple(float(x) for x in range(-5, 7))}
    assert quick[0][1].samples == 1000
    (runs[1] / "ema.safetensors").write_bytes(b"damaged")
    assert common_levels(runs) == tuple(float(x) for x in range(-5, 7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{place}/nothing", "nothing holds no run"),
        ("{images}", "images.npz holds no run"),
        ("{run} {other}", "cannot be compared: data is"),
        ("{run} {small}", "cannot be compared: image_size is None and 4"),
        ("{run} {share}", "cannot be compared: held_out is 0.05 and 0.1"),
        ("{run} {run}", "a run is named twice"),
        ("{run} {run}/../run", "a run is named twice"),
        ("{run} --out {place}/missing/page.html", "missing does not exist"),
        ("{run} --out {place}", "is a folder"),
        ("{run} --n 1", "--n must be at least 2"),
        ("{run} --n x", "n: expected"),
        ("{study} {run}", "study holds a study beside other runs"),
        ("{run} {study}", "study holds a study beside other runs"),
        ("{broken}", "study.json is damaged"),
        ("{untrained}", "ema.safetensors does not exist"),
        ("{cut}", "ema.safetensors is damaged"),
        ("{edited}", "config.yaml cannot be used (is not YAML"),
        ("", "RUNS"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, message, places, capsys, monkeypatch):
    monkeypatch.chdir(places["place"])
    before = sorted(places["place"].rglob("*"))
    code, stdout, err = xhat("report", *arguments.format(**places).split(), capsys=capsys)
    assert (code, stdout) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(places["place"].rglob("*")) == before


@pytest.fixture(scope="module")
def places(tmp_path_factory, images):
    """Folders to make mistakes with."""
    place = tmp_path_factory.mktemp("places")
    found = {"place": place, "images": images, "run": new_run(place / "run", images)}
    found["other"] = new_run(place / "other", write_digits(place / "other.npz", 32))
    found["small"] = new_run(place / "small", images, {"image_size": 4})
    found["share"] = new_run(place / "share", images, {"held_out": 0.1})
    found["untrained"] = new_run(place / "untrained", images, progress=(0.5,))
    for name, file, content in (("cut", "ema.safetensors", b"{"), ("edited", "config.yaml", b"a: [")):
        found[name] = new_run(place / name, images)
        (found[name] / file).write_bytes(content)
    for name, content in (("study", b"{}"), ("broken", b'{"study": {"changes": {}, "se')):
        (place / name).mkdir()
        (place / name / STUDY_FILE).write_bytes(content)
        found[name] = place / name
    return found


STUDIES = ("3", '{"x": 1}', '{"changes": {}}', '{"changes": 3}')
DAMAGED = ("", "[]", "3", *(f'{{"study": {study}, "failed": {{}}}}' for study in STUDIES))


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_study_is_one_line(content, tmp_path, capsys):
    (tmp_path / STUDY_FILE).write_text(content)
    code, _, err = xhat("report", tmp_path, "--out", tmp_path / "page.html", capsys=capsys)
    assert code == 2
    assert re.search(r"is damaged \(.*\): call xhat compare again", err)
    assert err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def new_study(out, images, **more):
    common = {"data": str(images), "labels": False, "max_steps": 2, **OPTIONS}
    study = Study({"plain": {}, "<b>odd": {"schedule": "flow"}}, "Which?", "mnist", common, [0, 1], samples=8, **more)
    for change in study.changes:
        for seed in study.seeds:
            folder = study.folder(out, change, seed)
            new_run(folder, images, config=study.config(change, seed))
            (folder / FINISHED).write_text("{}")
    return study


def test_a_study_is_one_entry_for_each_change(images, tmp_path, capsys):
    """One of its four runs failed: the page says so, and why."""
    study = new_study(tmp_path / "out", images)
    study_to_file(tmp_path / "out" / STUDY_FILE, study, {"<b>odd": {1: "term <i>denoise</i> is not finite at step 3"}})
    out = tmp_path / "page.html"
    assert xhat("report", tmp_path / "out", "--out", out, capsys=capsys)[0] == 0
    page = out.read_text()
    assert "<title>Which?</title>" in page
    assert "1 of 4 runs are missing: the reasons stand below." in page
    assert "seed 1: term &lt;i&gt;denoise&lt;/i&gt; is not finite at step 3" in page
    assert "seeds 0, 1" in page
    assert 'http-equiv="refresh"' not in page
    for change, seed in (("plain", 0), ("plain", 1), ("<b>odd", 0)):
        stored = json.loads((study.folder(tmp_path / "out", change, seed) / FOLDER / "measured.json").read_text())
        assert (stored["how"]["samples"], stored["how"]["penalties"]) == (8, study.penalties)
    assert not (study.folder(tmp_path / "out", "<b>odd", 1) / FOLDER).exists()


def test_a_run_of_a_study_that_cannot_be_measured_leaves_the_others(images, quick, tmp_path, monkeypatch):
    study = new_study(tmp_path, images)
    (study.folder(tmp_path, "plain", 1) / FINISHED).unlink()
    honest = of_study.measured

    def measured(run, how):
        if run == study.folder(tmp_path, "plain", 0):
            raise RuntimeError("out of\nmemory")
        return honest(run, how)

    monkeypatch.setattr(of_study, "measured", measured)
    contents, ended = study_contents(study, tmp_path, {})
    assert [e.failed for e in contents.entries] == [["seed 0: not measured: out of memory", "seed 1: not trained yet"], []]
    assert contents.entries[1].numbers["bits"].value == 4.5
    assert math.isnan(contents.entries[0].numbers["bits"].value)
    assert contents.notes[0].startswith("2 of 4 runs are missing")
    assert not ended
    assert contents.refresh is None


def test_a_study_is_watched_until_its_last_run_has_ended(images, quick, tmp_path):
    """What is still training is no failure; what failed is not waited for."""
    study = new_study(tmp_path, images)
    waiting = study.folder(tmp_path, "plain", 1) / FINISHED
    waiting.unlink()
    contents, ended = study_contents(study, tmp_path, {}, watch=True)
    assert ([e.failed for e in contents.entries], contents.refresh, ended) == ([[], []], module.SECONDS, False)
    assert len(quick) == 3
    contents, ended = study_contents(study, tmp_path, {"plain": {1: "not finite"}}, watch=True)
    assert (contents.entries[0].failed, contents.refresh, ended) == (["seed 1: not finite"], None, True)
    waiting.write_text("")
    assert study_contents(study, tmp_path, {}, watch=True)[1]
    assert study_how(study, []).logsnr == LEVELS


def test_a_run_is_watched_until_its_last_weights_are_there(images, quick, tmp_path, monkeypatch):
    """The last line of the metrics comes before the last weights: those of a checkpoint before must not be measured."""
    run, out = new_run(tmp_path / "run", images, progress=(0.25,)), tmp_path / "page.html"
    pages, steps = [], [
        lambda: (write_metrics(run, 0.25, 0.5, end='{"step": 3, "ima'), write_weights(run, 2)),
        lambda: write_metrics(run, 0.25, 0.5, 0.75, 1.0),
        lambda: write_weights(run, 4),
    ]  # fmt: skip

    def sleep(seconds):
        assert seconds == module.SECONDS
        assert quick == []
        pages.append(out.read_text())
        steps[len(pages) - 1]()

    monkeypatch.setattr(module.time, "sleep", sleep)
    assert xhat("report", run, "--watch", "--out", out)[0] == 0
    pages.append(out.read_text())
    assert [f'http-equiv="refresh" content="{module.SECONDS}"' in page for page in pages] == [True, True, True, False]
    assert ["Training is running" in page for page in pages] == [True, True, True, False]
    assert [folder for folder, _ in quick] == [run]
    assert pages[1] != pages[0]


def test_without_watch_a_run_is_measured_as_it_stands(images, quick, tmp_path):
    run = new_run(tmp_path / "run", images, progress=(0.25, 0.5))
    write_weights(run, 2)
    assert xhat("report", run, "--out", tmp_path / "page.html")[0] == 0
    assert len(quick) == 1
    assert 'http-equiv="refresh"' not in (tmp_path / "page.html").read_text()


def test_runs_of_an_older_version_are_shown(images, quick, tmp_path, monkeypatch):
    """Without environment.json, without keys that the config and the metrics did not have; nothing to wait for."""
    run = new_run(tmp_path / "run", images)
    for name, key in (("config.yaml", "held_out"), ("config.yaml", "eval_every")):
        text = (run / name).read_text()
        (run / name).write_text(re.sub(rf"^{key}:.*\n", "", text, flags=re.M))
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace(', "progress": 1.0', ""))
    assert "held_out" not in (run / "config.yaml").read_text()
    monkeypatch.delattr(module.time, "sleep")
    assert xhat("report", run, "--watch", "--out", tmp_path / "page.html")[0] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": [0, 1, 0]}, "a seed is named twice"),
        ({"changes": {"a": {"seed": 3}}}, 'change "a": seed is no value of a change'),
        ({"changes": {"a": {"help": 1}}}, 'change "a": unknown config key "help"'),
        ({"common": {"run": "elsewhere"}}, 'change "a": unknown config key "run"'),
        ({"changes": {"a": {"target.space": "v"}}}, 'change "a": target.space: target has no keys of its own'),
        ({"changes": {"a" * 300: None}}, "200 letters at most"),
        ({"changes": {"a": {"sampling.sampler": "dim"}}}, 'change "a": sampler: unknown name "dim"'),
        ({"penalties": {"fid": "total_variation"}}, "penalties.fid: fid is measured already"),
        ({"penalties": {1: "totl"}}, "penalties.1: unknown name"),
    ],
)
def test_what_a_study_may_not_say(values, message, images, tmp_path, capsys):
    common = {"data": str(images), **values.pop("common", {})}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"base": "mnist", "changes": {"a": None}, "common": common, **values}))
    code, stdout, err = xhat("compare", tmp_path / "s.yaml", "--out", tmp_path / "out", capsys=capsys)
    assert (code, stdout) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_are_shown_as_they_are(images, quick, tmp_path, monkeypatch, capsys):
    """Brackets and colons mean something to rich, and nothing in a name; and the levels told are those measured."""
    changes = {"[bold]x": None, "[/nope] :smile:": {"schedule": "linear_logsnr(-5, 6)"}, "größe": {"log_every": 2}}
    common = {"data": str(images), "labels": False, **OPTIONS}
    study = {"base": "mnist", "changes": changes, "common": common, "penalties": {"[/q]": "total_variation"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))

    def train(config, folder, *_):
        new_run(folder, images, config=config)
        (folder / FINISHED).write_text("{}")
        return "[/failed]" if "gr-e" in str(folder) else None

    monkeypatch.setattr("xhat.studies.run._train", train)
    monkeypatch.setattr("xhat.commands.actions.compare.measured", of_study.measured)
    code, stdout, _ = xhat("compare", tmp_path / "s.yaml", "--out", tmp_path / "out", capsys=capsys)
    assert code == 0
    assert all(f"\n{name} " in stdout for name in ("[bold]x", "[/nope] :smile:"))
    assert "größe, seed 0 failed: [/failed]" in stdout
    assert "logsnr -5 to 6, above the floor" in " ".join(stdout.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "[/nope] :smile:" in page
    assert "[/failed]" in page


def test_an_interrupted_study_ends_what_is_training(tmp_path, monkeypatch):
    """Also where Ctrl-C reached the command alone: no run goes on behind its back, and none is started any more."""
    started = []

    class Process:
        def __init__(self, command, **options):
            started.append(command)
            self.ended = threading.Event()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        def wait(self):
            return 130 if self.ended.wait(20) else 0

        def terminate(self):
            self.ended.set()

    monkeypatch.setattr("xhat.studies.run.subprocess.Popen", Process)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_study(Study({"a": {}, "b": {}, "c": {}}), tmp_path, lambda folder: {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 1
    assert not list(tmp_path.rglob(FINISHED))
