"""Two commands at once in one folder: one writer wins, the other says so; who reads is not disturbed."""

import shutil
from itertools import combinations_with_replacement

import pytest

ON_A_RUN = ("resume", "train", "sample", "evaluate", "bound", "report", "gradients", "inspect")
IN_A_STUDY = ("compare", "report of a study", "resume in a study")
EVERYDAY = [("resume", "resume"), ("resume", "sample")]


@pytest.fixture(scope="session")
def study(places, served, commands):
    """Half a study: one change is trained and measured, the other is not."""
    template = places / "study"
    done = served({"template": str(places / "nothing"), "together": [[str(word) for word in commands["compare"]]]})
    assert [end["code"] for end in done["ended"]] == [0], done
    shutil.copytree(places / "work", template)
    shutil.rmtree(template / "out" / "b" / "seed-0")
    (template / "out" / "report.html").unlink()
    return template


def require_one_line(end, *words):
    """It was refused with one of these."""
    assert (end["code"], end["out"]) == (2, "")
    lines = [line for line in end["err"].splitlines() if line.startswith("xhat ")]
    assert len(lines) == 1, end["err"]
    assert any(some in lines[0] for some in words), end["err"]


def ends_of(served, template, commands, pair):
    together = [[str(word) for word in commands[name]] for name in pair]
    found = served({"template": str(template), "together": together})
    assert not [name for name in found["left"] if name.endswith((".lock", ".partial"))]
    return found["ended"], found["left"]


def as_case(pair):
    return pytest.param(pair, id=" and ".join(pair), marks=() if pair in EVERYDAY else pytest.mark.slow)


@pytest.mark.parametrize("pair", [as_case(pair) for pair in combinations_with_replacement(ON_A_RUN, 2)])
def test_on_a_run(pair, places, served, commands):
    ends, _ = ends_of(served, places / "whole", commands, pair)
    by_name = list(zip(pair, ends, strict=True))
    for name, end in by_name:
        if name == "train":
            require_one_line(end, "add --resume")
    if pair in (("resume", "resume"), ("sample", "sample")):
        assert sorted(end["code"] for end in ends) == [0, 2], ends
        loser = next(end for end in ends if end["code"])
        require_one_line(loser, "another process is training in" if pair[0] == "resume" else "exists already")
    else:
        assert [(name, end) for name, end in by_name if name != "train" and end["code"] != 0] == []


@pytest.mark.slow
def test_two_new_runs(places, served, commands):
    ends, left = ends_of(served, places / "nothing", commands, ("train", "train"))
    assert sorted(end["code"] for end in ends) == [0, 2], ends
    loser = next(end for end in ends if end["code"])
    require_one_line(loser, "another process is training in", "holds a run already: add --resume")  # the later, the second
    assert "run/ema.safetensors" in left


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(combinations_with_replacement(IN_A_STUDY, 2)), ids=" and ".join)
def test_in_a_study(pair, study, served, commands):
    ends, left = ends_of(served, study, commands, pair)
    codes = [end["code"] for end in ends]
    if pair in (("compare", "compare"), ("resume in a study", "resume in a study")):
        assert sorted(codes) == [0, 2], ends
        doing = "comparing" if pair[0] == "compare" else "training"
        require_one_line(next(end for end in ends if end["code"]), f"another process is {doing} in")
    else:
        assert codes == [0, 0], ends
    if "compare" in pair:
        assert {"out/b/seed-0/ema.safetensors", "out/report.html"} <= set(left)
