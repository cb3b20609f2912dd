"""The limit that is reached first ends a run."""

import pytest

from xhat.config.config import Config
from xhat.errors import RunError
from xhat.training.budget import Budget


def test_the_first_limit_counts():
    budget = Budget(8, max_steps=10, max_images=72, max_minutes=1)
    assert (budget.steps, budget.seconds) == (9, 60)
    assert budget.progress(3, 0) == pytest.approx(1 / 3)
    assert budget.progress(3, 30) == pytest.approx(1 / 2)
    assert budget.progress(3, 90) == budget.progress(12, 0) == 1
    assert budget.end() == "at step 9 or after 1 minutes"
    assert Budget(8, max_images=73).steps == 10, "the last batch is a whole one"


def test_a_config_has_one():
    assert Budget.of(Config(batch_size=8, max_images=72, max_minutes=0.5)).end() == "at step 9 or after 0.5 minutes"


def test_a_run_without_an_end_is_refused():
    with pytest.raises(RunError, match="say how long to train"):
        Budget.of(Config())
