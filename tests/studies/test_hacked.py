"""Whether a reward rose alone."""

import pytest

from xhat.studies.hacked import verdicts
from xhat.studies.outcome import Outcome
from xhat.studies.study import Study

BASE = {"reward": [1.0, 1.1, 0.9], "judge": [1.0, 1.02, 0.98], "fid": [2.0, 2.1, 1.9], "recall": [0.8, 0.81, 0.79]}


def study(value="image_loss(unreadable_digit)"):
    return Study(
        {"base": {}, "tuned": {"terms.reward.loss": value}},
        seeds=[0, 1, 2],
        penalties={"reward": "unreadable_digit", "judge": "unreadable_to_patches"},
    )


def changed(**factors):
    """The base with some quantities scaled, a little otherwise for each seed."""
    return {name: [v * factors.get(name, 1.0) * (1 + 0.001 * i) for i, v in enumerate(values)] for name, values in BASE.items()}


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ({"reward": 0.5, "judge": 0.5, "fid": 0.5, "recall": 1.1}, "better on all"),
        ({"reward": 0.5, "judge": 2.0, "fid": 0.5, "recall": 1.1}, "hacked"),
        ({"reward": 0.5, "judge": 2.0, "fid": 3.0}, "hacked"),
        ({"reward": 0.5, "judge": 0.5, "fid": 3.0, "recall": 0.5}, "paid for in FID and recall"),
        ({"reward": 0.5, "judge": 0.9, "recall": 1.1}, "better"),
        ({"reward": 2.0, "judge": 0.5}, "no gain"),
    ],
)
def test_a_verdict(factors, verdict):
    (row,) = verdicts(study(), [Outcome("base", BASE, {}), Outcome("tuned", changed(**factors), {})])
    assert (row.change, row.verdict) == ("tuned", verdict)


def test_what_is_said_of_each():
    (row,) = verdicts(study(), [Outcome("base", BASE, {}), Outcome("tuned", changed(reward=0.5, judge=2.0), {})])
    assert row.trained == "reward better"
    assert row.unseen.startswith("judge worse, fid ")


def test_changes_that_train_on_none_of_them_have_no_verdict():
    assert verdicts(study("denoising"), [Outcome("base", BASE, {}), Outcome("tuned", changed(reward=0.5), {})]) == []


def test_of_one_seed_nothing_can_be_told():
    one = {name: values[:1] for name, values in BASE.items()}
    tuned = {name: [0.5 * v for v in values] for name, values in one.items()}
    (row,) = verdicts(study(), [Outcome("base", one, {}), Outcome("tuned", tuned, {})])
    assert (row.trained, row.verdict) == ("reward not to be told", "no gain")
