"""Recipes, starting weights and changes make a config."""

import pytest
import yaml

from xhat.config.config import Config, TermConfig, to_values
from xhat.config.parsing import read_config, recipe_path
from xhat.errors import ConfigError, RunError, UsageError
from xhat.runs.places import CONFIG_FILE
from xhat.runs.recipe import config_with, find_recipe


def test_changes_are_laid_over_a_preset():
    config = config_with("ddpm", {"optimizer.lr": 1, "terms.smooth.loss": "image_loss(total_variation)"})
    preset = read_config(recipe_path("ddpm"))
    assert config.optimizer.lr == 1
    assert config.terms == {**preset.terms, "smooth": TermConfig("image_loss(total_variation)")}
    assert config.sampling == preset.sampling
    assert config_with(None, {}) == read_config(recipe_path("mnist"))


def test_a_budget_replaces_all_of_the_recipes():
    assert read_config(recipe_path("mnist")).max_minutes == 2.5
    config = config_with("mnist", {"max_steps": 3})
    assert (config.max_steps, config.max_images, config.max_minutes) == (3, None, None)
    assert config_with("mnist", {"seed": 3}).max_minutes == 2.5


def test_starting_weights_bring_their_config_along(tiny_run):
    own = read_config(tiny_run / CONFIG_FILE)
    config = config_with(None, {"init": str(tiny_run), "terms.smooth.loss": "image_loss(total_variation)"})
    assert (config.network, config.init) == (own.network, str(tiny_run))
    assert set(config.terms) == {*own.terms, "smooth"}
    with pytest.raises(RunError, match="were trained with target: v, not x0"):
        config_with(None, {"init": str(tiny_run), "target": "x0"})


def test_a_whole_config_is_taken_as_it_is(tiny_run, tmp_path):
    """It holds what its starting weights brought along already, but for the terms that it does not want."""
    wanted = config_with(None, {"init": str(tiny_run), "terms": {"other": {"loss": "denoising(space=x0)"}}})
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(to_values(wanted)))
    assert set(config_with(str(path), {}).terms) == {"other"}
    path.write_text(yaml.safe_dump({**to_values(wanted), "target": "x0"}))
    with pytest.raises(RunError, match="were trained with target"):
        config_with(str(path), {})
    part = {key: value for key, value in to_values(wanted).items() if key in ("init", "terms")}
    path.write_text(yaml.safe_dump(part))
    assert set(config_with(str(path), {}).terms) == {"denoise", "other"}


def test_the_own_config_of_a_run_needs_its_starting_weights_no_more(tmp_path):
    (tmp_path / CONFIG_FILE).write_text("init: gone\nseed: 3\n")
    recipe = find_recipe(str(tmp_path / CONFIG_FILE), run=tmp_path)
    assert (recipe.init, recipe.values["seed"]) == (None, 3)
    with pytest.raises(RunError, match="gone does not exist"):
        find_recipe(str(tmp_path / CONFIG_FILE))


def test_presets_and_starting_weights_are_nobodys_choice(tmp_path):
    assert find_recipe("ddpm").unchosen == find_recipe("ddpm").values
    (tmp_path / "own.yaml").write_text("seed: 3\n")
    assert find_recipe(str(tmp_path / "own.yaml")).unchosen == {}


def test_mistakes_are_one_line(tmp_path):
    for name, changes, kind in (("ddmp", {}, UsageError), ("ddpm", {"init": 3}, ConfigError), ("ddpm", {"x": 1}, ConfigError)):
        with pytest.raises(kind) as caught:
            config_with(name, changes)
        assert "\n" not in str(caught.value)
    assert Config().init is None
