"""What was asked for and changes nothing is said, in a line each; what nobody touched is not."""

import numpy as np
import pytest
from PIL import Image

from helpers import TINY, write_digits, xhat
from xhat.runs.places import OBJECTS

UNTOLD = "has no effect: the network is not told labels"
STEP = (*TINY, "--max_steps", 1, "--eval_every", 0)


def notes(err: str) -> list[str]:
    return [line.removeprefix("xhat: note: ") for line in err.splitlines() if line.startswith("xhat: note: ")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), []),
        (("--labels", "false"), []),  # the preset's own guidance is not the user's
        (("--labels", "false", "--sampling.guidance", 2), [f"sampling.guidance 2.0 {UNTOLD}"]),
        (("--labels", "false", "--label_dropout", 0.3), [f"label_dropout 0.3 {UNTOLD}"]),
        (("--label_dropout", 0), ["sampling.guidance 1.3 means little: label_dropout is 0"]),
        (("--label_dropout", 0, "--sampling.guidance", 1), []),
        (("--eval_every", 5, "--held_out", 0), ["eval_every 5 has no effect: no images are held out"]),
        (("--network", "dit(depth=1, width=32, heads=2)"), []),
        (("--shard", "blocks"), ["shard blocks has no effect: there is one process, which has all weights"]),
    ],
)
def test_notes_of_training(options, said, digits, tmp_path, capsys):
    command = ("train", "mnist", "--run", tmp_path / "run", "--data", digits, *STEP, *options)
    code, _, err = xhat(*command, capsys=capsys)
    assert code == 0
    found = notes(err)
    assert len(found) == len(said), found
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True)), found


def test_an_expression_of_pictures_takes_a_size_and_says_its_labels_itself(tmp_path, capsys):
    for k in range(20):
        (tmp_path / "d" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30), 10 * k, np.uint8)).save(tmp_path / "d" / "ab"[k % 2] / f"{k}.png")
    command = (
        "train",
        "mnist",
        "--run",
        tmp_path / "run",
        "--data",
        f"images({tmp_path / 'd'})",
        *STEP,
        "--label_dropout",
        0.1,
    )
    more = ("--image_size", "32x16", "--augment", "flip", "--labels", "true", "--sampling.guidance", 1)
    code, _, err = xhat(*command, *more, capsys=capsys)
    assert code == 0, err
    assert "channel of 16x32" in err
    assert [line for line in notes(err) if "image_size" in line] == []
    assert "labels True has no effect: the expression of --data says itself what the network is told: labels=True of" in err


def test_a_recipe_of_ones_own_is_ones_own_choice(digits, tmp_path, capsys):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("sampling: {guidance: 3}\nlabel_dropout: 0.1\n")
    _, _, err = xhat("train", recipe, "--run", tmp_path / "run", "--data", digits, *STEP, capsys=capsys)
    assert notes(err) == [f"sampling.guidance 3.0 {UNTOLD}"]


def test_starting_weights_bring_their_own_values(tiny_run, tmp_path, capsys):
    init = ("train", "--init", tiny_run, "--max_steps", 1)
    assert notes(xhat(*init, "--run", tmp_path / "a", capsys=capsys)[2]) == []
    (line,) = notes(xhat(*init, "--run", tmp_path / "b", "--label_dropout", 0, capsys=capsys)[2])
    assert "never shown the null class" in line


def test_notes_of_sampling(tiny_run, tmp_path, capsys):
    data = write_digits(tmp_path / "d.npz")
    untold, undropped = tmp_path / "untold", tmp_path / "undropped"
    assert xhat("train", "mnist", "--run", untold, "--data", data, "--labels", "false", *STEP)[0] == 0
    assert xhat("train", "mnist", "--run", undropped, "--data", data, "--label_dropout", 0, *STEP)[0] == 0
    capsys.readouterr()
    for run, guidance, said in (
        (untold, 5, f"--guidance 5 {UNTOLD}"),
        (undropped, 5, "--guidance 5 means little"),
        (tiny_run, 5, None),
        (untold, 1, None),
        (untold, None, None),
        (undropped, None, None),
    ):
        option = () if guidance is None else ("--guidance", guidance)
        code, _, err = xhat(
            *("sample", run, "--n", 2, "--steps", 2, "--out", tmp_path / "s.npz", "--force"), *option, capsys=capsys
        )
        assert code == 0
        assert [line.startswith(said or "?") for line in notes(err)] == ([] if said is None else [True])


def test_notes_of_evaluation(tiny_run, tmp_path, capsys):
    xhat("sample", tiny_run, "--n", 4, "--steps", 2, "--out", tmp_path / "s.npz")
    capsys.readouterr()
    command = ("evaluate", tiny_run, "--samples", tmp_path / "s.npz", "--images", 4)
    assert notes(xhat(*command, capsys=capsys)[2]) == []
    found = notes(xhat(*command, "--n", 9, "--seed", 3, capsys=capsys)[2])
    assert found == ["--n 9 has no effect: --samples are there already", "--seed 3 has no effect: --samples are there already"]


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_run_of_fit_is_gone_on_with_in_python(resume, tmp_path, capsys):
    (tmp_path / OBJECTS).write_text("{}")
    code, _, err = xhat("train", "mnist", "--run", tmp_path, *STEP, *resume, capsys=capsys)
    assert (code, err) == (2, f"xhat train: {tmp_path} holds a run of xhat.fit: resume it in Python, or choose another --run\n")
