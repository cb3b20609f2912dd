"""Whether a model learns is seen early."""

from helpers import TINY, xhat


def test_the_first_picture_comes_early(digits, tmp_path):
    run = tmp_path / "run"
    often = ("--sample_every", 10, "--sampling.steps", 2)
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 11, *TINY, *often)[0] == 0
    assert sorted(int(path.stem[5:]) for path in (run / "samples").iterdir()) == [2, 10, 11]
