"""Recipes and studies: a key that stands twice is refused wherever YAML is read, merge keys are not."""

import pytest
import yaml

from helpers import TINY, process, xhat
from xhat.config.parsing import read_config
from xhat.config.yaml_files import parse_yaml, read_mapping
from xhat.errors import DuplicateKeyError, YamlError

TWICE = """\
terms:
  denoise:
    loss: denoising(space=v)
  denoise:
    loss: image_loss(total_variation)
"""
MERGED = """\
terms:
  denoise: &own
    loss: denoising(space=v)
    weight: 1.0
  more:
    <<: *own
    weight: 0.5
"""


@pytest.mark.trap(41)
@pytest.mark.parametrize(
    "command",
    [
        ("train", "FILE", "--run", "RUN"),
        ("train", "FILE", "--run", "RUN", "--init", "TINY"),
        ("inspect", "FILE"),
        ("inspect", "mnist", "FILE"),
        ("gradients", "FILE"),
        ("compare", "FILE", "--out", "RUN"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_lines(command, tiny_run, tmp_path, capsys):
    path, run = tmp_path / "twice.yaml", tmp_path / "run"
    path.write_text(f"changes: {{a: null}}\ncommon:\n  {TWICE}" if command[0] == "compare" else TWICE)
    places = {"FILE": path, "RUN": run, "TINY": tiny_run}
    code, out, err = xhat(*(places.get(word, word) for word in command), capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    first = 4 if command[0] == "compare" else 2
    assert f"twice.yaml: denoise stands twice, in line {first} and line {first + 2}" in err
    assert not run.exists()


@pytest.mark.trap(41)
def test_the_config_of_a_run_and_an_options_value_are_read_alike(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((tiny_run / "config.yaml").read_text() + "seed: 3\n")
    code, _, err = xhat("train", "--run", run, "--resume", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "seed stands twice" in err
    for value in ("{a: {loss: x}, a: {loss: y}}", '{"a": {"loss": "x"}, "a": {"loss": "y"}}'):
        for option in (("--terms", value), (f"--terms={value}",)):
            code, _, err = xhat("train", "mnist", "--run", tmp_path / "none", *option, capsys=capsys)
            assert (code, err.count("\n")) == (2, 1)
            assert "a stands twice, in line 1 and line 1" in err


def test_merge_keys_and_overriding_options_still_work(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text(MERGED)
    assert {name: term.weight for name, term in read_config(path).terms.items()} == {"denoise": 1.0, "more": 0.5}
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: {<<: *a}\n", "")["b"] == {"x": 2}


def test_numbers_are_read_as_options_are():
    assert parse_yaml("a: 1e-3\nb: 2\nc: 1.5e3\nd: v1e3\n", "") == {"a": 1e-3, "b": 2, "c": 1500, "d": "v1e3"}


def test_two_merge_keys_and_an_exponent_out_of_range_are_no_mistakes():
    text = "a: &a {x: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n  z: 3\nsha: 1234e567\n"
    values = parse_yaml(text, "here")
    assert values["c"] == {"x": 1, "y": 2, "z": 3}
    assert values["sha"] == "1234e567"


def test_a_number_and_its_text_are_one_key():
    """A change of a study named 1 and one named "1" would share a folder."""
    with pytest.raises(DuplicateKeyError, match="1 stands twice"):
        parse_yaml('1: a\n"1": b\n', "x")


def test_what_is_no_yaml_is_one_line(tmp_path):
    path = tmp_path / "x.yaml"
    for content, said in ((b"a: [", "is not YAML"), (b"a: \xff", "is not YAML"), (b"- 1", "holds no config")):
        path.write_bytes(content)
        with pytest.raises(YamlError, match=said) as caught:
            read_mapping(path)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_recipes_are_utf8_in_every_locale_and_found_under_every_name(digits, tmp_path):
    """In an ASCII locale, in a folder whose name would be a pattern of several."""
    folder = tmp_path / "runs [1]"
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text("# ± 3 σ\nseed: 7\n", encoding="utf-8")
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    job = process("train", recipe, "--run", folder / "run", "--data", digits, "--max_steps", 1, *TINY, **locale)
    assert job.wait(timeout=120) == 0, job.stderr.read()
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["seed"] == 7
    assert read_config(folder / "run" / "config.yaml").seed == 7


def test_reading_a_recipe_leaves_the_folder_of_the_process_alone(tmp_path, monkeypatch):
    """It is the folder of all its threads, one of which may be training."""
    path = tmp_path / "merge.yaml"
    path.write_text(MERGED)

    def chdir(place):
        raise AssertionError(f"went to {place}")

    monkeypatch.setattr("os.chdir", chdir)
    assert set(read_config(path).terms) == {"denoise", "more"}
