"""Every number of a config has a range, said at its field."""

import math
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest

from xhat.config.config import Config, TermConfig
from xhat.config.options import OptimizerConfig, SamplingConfig
from xhat.config.ranges import FINITE, RANGE
from xhat.errors import ConfigError


@pytest.mark.parametrize("kind", [Config, OptimizerConfig, SamplingConfig, TermConfig])
def test_every_number_has_a_range(kind):
    hints = get_type_hints(kind)
    numbers = {f.name for f in fields(kind) if {int, float} & {hints[f.name], *get_args(hints[f.name])}}
    assert {f.name for f in fields(kind) if RANGE in f.metadata} == numbers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"held_out": 0.6}, r"held_out must be in \[0, 0.5\], got 0.6"),
        ({"max_minutes": math.nan}, "max_minutes must be at least 1e-06, got nan"),
        ({"optimizer": OptimizerConfig(betas=(0.9, 1.0))}, r"optimizer.betas must be in \[0, 1\], got 1.0"),
        ({"optimizer": OptimizerConfig(lr=math.inf)}, "optimizer.lr must be at least 0, got inf"),
        ({"sampling": SamplingConfig(guidance=math.nan)}, "sampling.guidance must be a finite number, got nan"),
        ({"terms": {"a": TermConfig("x", math.inf)}}, "terms.a.weight must be a finite number, got inf"),
    ],
)
def test_a_number_out_of_range_is_named(change, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Config(**change)
    with pytest.raises(ConfigError, match=message):
        replace(Config(), **change)


def test_the_ends_of_a_range_and_what_is_no_number_are_fine():
    config = Config(held_out=0.5, ema=0.28, seed=2**62, max_steps=None, optimizer=OptimizerConfig(lr=FINITE))
    assert config.held_out == 0.5
    assert Config(terms={"a": TermConfig("x", "dual_ascent(0.1)")}).terms["a"].weight == "dual_ascent(0.1)"
    assert Config(sampling=SamplingConfig(guidance=-3.0)).sampling.guidance == -3
