"""From measurements to contents: what is averaged, marked, left out."""

import json
import math
import statistics

import pytest

from xhat.config.config import Config, TermConfig
from xhat.config.options import SamplingConfig
from xhat.report.collect import QUANTITIES, Group, as_text, collect, mean_line
from xhat.report.contents import Line, Mark
from xhat.report.measured import FOLDER, Measured
from xhat.studies.outcome import Outcome

X = [-1.0, 0.0, 1.0]


def measurement(y=1.0, lines=(), real=0.5, problems=(), conditional=False):
    found = {"x0_error": Line(X, [y, y, y], [0.1] * 3), **dict(lines)}
    return Measured(10, {}, {"tv": real}, found, [1.0, 0.0], list(problems), conditional)


def group(name, values=None, measured=(), folders=(), failed=None, **config):
    return Group(name, list(folders), list(measured), Config(**config), Outcome(name, values or {}, failed or {}))


def contents(*groups, **options):
    return collect("title", "subtitle", groups, ["tv"], refresh=None, **options)


def run_folder(path, losses, **more):
    path.mkdir()
    rows = [
        {"step": i + 1, "images": 16 * (i + 1), "seconds": 1.0, "images_per_second": 1.0, "loss": loss}
        for i, loss in enumerate(losses)
    ]
    for i, value in more.get("eval", {}).items():
        rows[i]["eval/bits_per_dim"] = value
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numbers_are_means_over_seeds_with_their_spread():
    """A standard error where there is one, else the standard deviation between seeds; times have neither."""
    values = {"bits": [1.0, 1.4], "bits_se": [0.3, 0.3], "fid": [2.0, 4.0], "milliseconds": [5.0, 7.0], "tv": [0.1, 0.3]}
    shown = contents(group("a", values, [measurement()]))
    (entry,) = shown.entries
    numbers = {key: (number.value, number.spread) for key, number in entry.numbers.items()}
    assert numbers["bits"] == (1.2, pytest.approx(math.hypot(0.3, 0.2)))
    assert numbers["fid"] == (3.0, pytest.approx(math.sqrt(2)))
    assert numbers["tv"] == (0.2, pytest.approx(math.sqrt(0.02)))
    assert (numbers["milliseconds"][0], math.isnan(numbers["milliseconds"][1])) == (6.0, True)
    assert [c.key for c in shown.columns] == ["bits", "fid", "tv", "milliseconds"]  # what nobody has is no column
    assert shown.columns[2].real == 0.5
    assert math.isnan(shown.columns[0].real)
    assert shown.penalties == ["tv"]


def test_the_name_of_a_penalty_is_no_other_quantity():
    assert {"bits", "excess_se", "milliseconds", "fid"} <= set(QUANTITIES)
    assert "total_variation" not in QUANTITIES


def test_lines_are_means_with_the_deviation_between_seeds():
    found = mean_line([Line(X, [1.0, 2.0, 3.0], [9.0] * 3), Line(X, [3.0, 2.0, 5.0])])
    assert (found.x, found.y) == (X, [2.0, 2.0, 4.0])
    assert found.spread == pytest.approx([math.sqrt(2), 0.0, math.sqrt(2)])
    one = Line(X, [1.0, 2.0, 3.0], [9.0] * 3)
    assert mean_line([Line([], []), one]) == one
    assert mean_line([one, Line([0.0], [5.0])]) == one  # another abscissa: no mean
    assert mean_line([]) is None
    assert mean_line([Line([], [])]) is None
    entry = contents(group("a", measured=[measurement(1.0), measurement(2.0)])).entries[0]
    assert entry.x0_error.y == [1.5] * 3


def test_the_loss_is_thinned_to_means_of_neighbours(tmp_path):
    """450 lines in parts of three: 150 points, each at its last line. Another seed's are averaged with them."""
    first = run_folder(tmp_path / "one", [float(i) for i in range(450)], eval={149: 2.0, 299: 1.5, 449: 1.0})
    entry = contents(group("a", folders=[first])).entries[0]
    assert len(entry.loss.x) == 150
    assert entry.loss.x[:2] == [48.0, 96.0]
    assert entry.loss.y[:2] == [1.0, 4.0]
    assert statistics.fmean(entry.loss.y) == statistics.fmean(range(450))
    assert (entry.progress.x, entry.progress.y) == ([2400.0, 4800.0, 7200.0], [2.0, 1.5, 1.0])
    second = run_folder(tmp_path / "two", [float(i) + 2 for i in range(450)])
    both = contents(group("a", folders=[first, second])).entries[0]
    assert both.loss.y[:2] == [2.0, 5.0]
    assert both.loss.spread[:2] == pytest.approx([math.sqrt(2)] * 2)
    short = contents(group("a", folders=[run_folder(tmp_path / "short", [3.0, 1.0])])).entries[0]
    assert (short.loss.x, short.loss.y) == ([16.0, 32.0], [3.0, 1.0])


def test_best_and_ties_are_marked_where_lower_is_better():
    a = group("a", {"bits": [1.0], "bits_se": [0.01], "fid": [3.0], "read": [0.5], "tv": [0.2]})
    b = group("b", {"bits": [1.02], "bits_se": [0.01], "fid": [2.0], "read": [0.4], "tv": [0.1]})
    c = group("c", {"bits": [1.2], "bits_se": [0.01]})
    marks = {e.name: {key: number.mark for key, number in e.numbers.items()} for e in contents(a, b, c).entries}
    assert [marks[name]["bits"] for name in "abc"] == [Mark.BEST, Mark.TIE, Mark.NONE]
    assert [marks[name]["fid"] for name in "abc"] == [Mark.NONE, Mark.BEST, Mark.NONE]
    assert {marks[name][key] for name in "abc" for key in ("read", "tv")} == {Mark.NONE}  # less is not better
    assert contents(a).entries[0].numbers["bits"].mark is Mark.NONE  # the best of one is nothing


def test_what_is_missing_is_none(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    for entry in contents(group("a"), group("b", folders=[folder])).entries:
        known = (entry.x0_error, entry.loss, entry.progress, entry.weighting, entry.bound, entry.samples, entry.trajectory)
        assert known == (None,) * 7
        assert (entry.floor, entry.numbers, entry.environment, entry.failed) == (None, {}, {}, [])
    shown = contents(group("a"))
    assert (shown.columns, shown.floors, shown.trajectory_times, shown.penalties) == ([], {}, [], [])


def test_pictures_and_environment_are_those_of_the_first_run_that_has_them(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    for folder, picture in ((first, None), (second, b"png")):
        (folder / FOLDER).mkdir(parents=True)
        (folder / "environment.json").write_text(json.dumps({"device": folder.name}))
        if picture:
            (folder / FOLDER / "samples.png").write_bytes(picture)
    entry = contents(group("a", folders=[first, second])).entries[0]
    assert (entry.samples.png, entry.samples.alt) == (b"png", "samples of a")
    assert entry.trajectory is None
    assert entry.environment == {"device": "one"}


def floor(y):
    return {"floor_lower": Line(X, [y] * 3), "floor_upper": Line(X, [2 * y] * 3)}.items()


def test_models_that_are_told_the_label_have_a_floor_of_their_own():
    """Whatever their configs say: data without labels tell none, also where labels are asked for."""
    plain, told = measurement(lines=floor(0.2)), measurement(lines=floor(0.1), conditional=True)
    shown = contents(
        group("a", measured=[plain], labels="auto"), group("b", measured=[told, told]), group("c", measured=[measurement()])
    )
    assert {name: (f.lower.y[0], f.upper.y[0]) for name, f in shown.floors.items()} == {
        "floor": (0.2, 0.4),
        "floor, given the label": (0.1, 0.2),
    }
    assert [e.floor for e in shown.entries] == ["floor", "floor, given the label", None]
    assert list(contents(group("b", measured=[told])).floors) == ["floor, given the label"]


def test_failures_and_problems_are_told():
    """Failed seeds at their entry; problems once for each name, after the notes on the whole."""
    broken = group(
        "a", {"bits": [math.nan, 1.0]}, [measurement(problems=["no bound: x"])] * 2, failed={1: "not finite", 4: "y"}
    )
    shown = contents(broken, group("b", measured=[measurement()]), notes=["a note"])
    assert shown.entries[0].failed == ["seed 1: not finite", "seed 4: y"]
    assert shown.entries[0].numbers["bits"].value == 1.0
    assert math.isnan(shown.entries[1].numbers["bits"].value)
    assert shown.notes == ["a note", "a: no bound: x"]
    assert shown.trajectory_times == ["t = 1.00", "t = 0.00"]


def test_the_config_as_text_leaves_out_what_is_one_runs_own():
    config = Config(
        seed=3,
        max_steps=7,
        eval_every=2,
        terms={"denoise": TermConfig("denoising(space=x0)", 0.5)},
        sampling=SamplingConfig(steps=9),
        image_size=None,
    )
    text = as_text(config)
    left_out = {"seed", "max_steps", "max_images", "max_minutes", "checkpoint_every", "sample_every", "log_every", "eval_every"}
    assert not left_out & set(text)
    assert text["terms.denoise.loss"] == "denoising(space=x0)"
    assert (text["terms.denoise.weight"], text["sampling.steps"], text["image_size"], text["labels"]) == (
        "0.5",
        "9",
        "null",
        "false",
    )
    assert text["optimizer.betas"] == "[0.9, 0.99]"
    assert as_text(Config(seed=1)) == as_text(Config(seed=2, max_minutes=3.0))
