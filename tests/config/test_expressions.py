"""The names and calls of configs."""

import pytest

from xhat.config.build import build_denoiser, build_objective
from xhat.config.config import Config, TermConfig
from xhat.config.expressions import evaluate
from xhat.config.names import OF_TERMS
from xhat.data.shape import DataShape
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


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"variance": "5"}, 'variance: "5" is no variance; known: posterior, forward, fixed_large, learned'),
        ({"schedule": "5"}, 'schedule: "5" is no schedule; known: '),
        ({"times": "5"}, 'times: "5" is no time sampler; known: '),
        ({"times": "adaptive(bins=0)"}, "times: adaptive: a density over bins needs at least 1 bin, got 0"),
        ({"times": "stratified(5)"}, "times: stratified(): too many positional arguments"),
        ({"terms": {"a": TermConfig("constant")}}, 'terms.a.loss: "constant" is no loss; known: '),
        (
            {"terms": {"a": TermConfig("learned_uncertainty")}},
            "terms.a.loss: learned_uncertainty needs arguments: learned_uncertainty(",
        ),
    ],
)
def test_what_is_no_part_of_its_kind_is_one_line(changes, line):
    config = Config(**{"network": "unet(widths=(8, 16), blocks=(1, 1))", **changes})
    with pytest.raises(ConfigError) as error:
        build_objective(config, build_denoiser(config, DataShape(1, 8, None)))
    assert line in str(error.value)
    assert "\n" not in str(error.value)
