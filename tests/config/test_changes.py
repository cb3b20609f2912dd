"""Changes by dotted keys, configs as plain values and back, what differs between two."""

import json
from dataclasses import replace

import pytest
import yaml

from xhat.config.changes import changed_values, differences, flat, overlaid, with_changes
from xhat.config.config import Config, TermConfig, from_values, to_values
from xhat.config.options import OptimizerConfig, SamplingConfig
from xhat.errors import ConfigError

BASE = {"seed": 0, "optimizer": {"lr": 1.0, "betas": [0.9, 0.99]}, "terms": {"a": {"loss": "x", "weight": 2.0}}}


def test_a_dotted_key_changes_one_value_and_the_base_stays():
    before = json.dumps(BASE)
    changed = with_changes(BASE, {"optimizer.lr": 3.0, "terms.b.loss": "y", "terms.a.weight": 0.5, "seed": 7})
    assert changed == {
        "seed": 7,
        "optimizer": {"lr": 3.0, "betas": [0.9, 0.99]},
        "terms": {"a": {"loss": "x", "weight": 0.5}, "b": {"loss": "y"}},
    }
    assert json.dumps(BASE) == before


def test_a_mapping_is_laid_over_its_section_but_all_terms_replace_all():
    assert with_changes(BASE, {"optimizer": {"lr": 3.0}})["optimizer"] == {"lr": 3.0, "betas": [0.9, 0.99]}
    assert with_changes(BASE, {"terms.a": {"weight": 3}})["terms"] == {"a": {"loss": "x", "weight": 3}}
    assert with_changes(BASE, {"terms": {"b": {"loss": "y"}}})["terms"] == {"b": {"loss": "y"}}
    assert with_changes(BASE, {"optimizer.betas": [0.1, 0.2]})["optimizer"]["betas"] == [0.1, 0.2]


def test_the_later_of_two_changes_counts():
    whole = {"b": {"loss": "y"}}
    assert with_changes(BASE, {"terms.a.weight": 3, "terms": whole})["terms"] == whole
    assert set(with_changes(BASE, {"terms": whole, "terms.a.weight": 3})["terms"]) == {"a", "b"}


def test_a_key_that_leads_into_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"^optimizer\.lr\.x: optimizer\.lr has no keys of its own"):
        with_changes(BASE, {"optimizer.lr.x": 1})
    with pytest.raises(ConfigError, match=r"^seed\.a\.b: seed has no keys of its own"):
        with_changes(BASE, {"seed.a.b": 1})


def test_mappings_merge_and_values_replace():
    both = overlaid({"a": {"x": 1, "y": 2}, "b": [2, 3], "c": 4}, {"a": {"x": 9, "z": 3}, "b": [1]})
    assert both == {"a": {"x": 9, "y": 2, "z": 3}, "b": [1], "c": 4}


CONFIG = Config(
    seed=3,
    optimizer=OptimizerConfig(betas=(0.5, 0.75)),
    sampling=SamplingConfig(steps=7),
    terms={"a": TermConfig("x", "dual_ascent(0.1)"), "b": TermConfig("y", 0.5, "every(2)")},
)


@pytest.mark.parametrize(
    "through", [lambda v: v, lambda v: json.loads(json.dumps(v)), lambda v: yaml.safe_load(yaml.safe_dump(v))]
)
def test_a_config_is_the_same_after_json_and_yaml(through):
    values = to_values(CONFIG)
    assert values["optimizer"]["betas"] == [0.5, 0.75]
    assert from_values(through(values)) == CONFIG


def test_a_config_of_before_images_were_held_out_holds_none_out():
    values = to_values(CONFIG)
    del values["held_out"]
    assert from_values(values) == replace(CONFIG, held_out=0.0)


def test_what_differs_is_told_by_its_key():
    other = replace(CONFIG, seed=4, optimizer=replace(CONFIG.optimizer, lr=1.0), terms={"a": CONFIG.terms["a"]})
    assert changed_values(CONFIG, other)["optimizer.lr"] == (0.002, 1.0)
    assert changed_values(CONFIG, other)["terms.b.loss"] == ("y", "absent")
    assert differences(CONFIG, other, ("terms", "optimizer")) == ["seed: 3 there, 4 here"]
    assert differences(CONFIG, CONFIG) == []
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
