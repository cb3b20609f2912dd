"""The names and calls of configs."""

import pytest

from xhat.config.expressions import evaluate
from xhat.config.names import OF_TERMS
from xhat.diffusion.schedules import Cosine, Flow
from xhat.diffusion.targets import V
from xhat.diffusion.weightings import min_snr
from xhat.errors import ConfigError
from xhat.registry import SCHEDULES

NAMES = {**OF_TERMS, **SCHEDULES}


def test_reads_names_calls_and_nesting():
    assert evaluate("v", NAMES) is V
    assert evaluate("min_snr(3)", NAMES) == min_snr(3)
    assert isinstance(evaluate("cosine", NAMES), Cosine)
    assert evaluate("flow(shift=3)", NAMES).shift == 3
    loss = evaluate("denoising(space=x0, weighting=min_snr(gamma=2), norm=huber(0.5))", NAMES)
    assert (loss.space.name, loss.weighting.gamma, loss.norm.delta) == ("x0", 2, 0.5)
    assert evaluate("zero_terminal(linear_beta(10))", NAMES).steps == 10


def test_context_fills_only_what_is_left_out():
    make = {"flow": lambda shift=1.0, t_min=0.5: Flow(shift, t_min)}
    assert evaluate("flow(t_min=0.1)", make, {"t_min": 0.2, "shift": 2.0, "other": 1}).t_min == 0.1
    assert evaluate("flow()", make, {"t_min": 0.2}).t_min == 0.2


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("min_snrr(5)", "did you mean min_snr"),
        ("min_snr(gama=5)", "gamma=5.0"),
        ("min_snr('five')", "gamma must be a float"),
        ("v(1)", "takes no arguments"),
        ("flow(shift=-1)", "shift > 0"),
        ("__import__('os').system('true')", "cannot read"),
        ("min_snr(5", "cannot read"),
        ("[x for x in ()]", "cannot read"),
        ("unknown_thing", "known:"),
    ],
)
def test_mistakes_are_one_line_with_the_way_out(text, hint):
    with pytest.raises(ConfigError) as caught:
        evaluate(text, NAMES)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
