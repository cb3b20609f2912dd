"""Configs from what people write: types are checked, and each mistake is named with its key."""

import pytest

from xhat.config.config import Config
from xhat.config.parsing import config_of, read_config, write_config
from xhat.errors import ConfigError


def test_defaults_are_filled_in_and_the_values_stay_as_they_are():
    values = {"optimizer": {"lr": 1}, "terms": {"a": {"loss": "x"}}}
    config = config_of(values)
    assert (config.optimizer.lr, config.optimizer.betas, config.terms["a"].when) == (1.0, (0.9, 0.99), "always")
    assert values == {"optimizer": {"lr": 1}, "terms": {"a": {"loss": "x"}}}
    assert config_of({}) == Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tarket": "v"}, 'unknown config key "tarket": did you mean target?'),
        ({"optimizer": {"lrr": 1}}, 'unknown config key "optimizer.lrr": did you mean optimizer.lr?'),
        ({"optimizer": {"zzz": 1}}, 'unknown config key "optimizer.zzz": known: lr, muon_lr'),
        ({"terms": {"a": {"los": 1}}}, 'unknown config key "terms.a.los": did you mean terms.a.loss?'),
        ({"optimizer": 3}, "optimizer must be a mapping of lr, muon_lr, betas"),
        ({"terms": {"a": 3}}, "terms.a must be a mapping of loss, weight, when; got 3"),
        ({"batch_size": "x"}, "batch_size: expected int, got x"),
        ({"compile": False}, "compile: expected one of"),
        ({"optimizer": {"betas": [1]}}, "optimizer.betas: expected tuple with 2 elements, got"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_a_mistake_is_named_with_its_key(values, message):
    with pytest.raises(ConfigError) as caught:
        config_of(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_says_the_same_is_left_as_it_is(tmp_path):
    path = tmp_path / "config.yaml"
    write_config(Config(seed=3), path)
    before = path.stat().st_mtime_ns
    write_config(Config(seed=3), path)
    assert path.stat().st_mtime_ns == before
    assert read_config(path) == Config(seed=3)
    write_config(Config(seed=4), path)
    assert read_config(path).seed == 4
