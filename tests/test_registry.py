"""Registered parts: their names, and that there is one of each."""

import subprocess
import sys

import pytest

from xhat.registry import Registry, snake_case


def test_a_part_has_its_python_name_and_a_lower_case_one():
    things = Registry("thing")

    @things.register
    class BigThing: ...

    @things.named("short")
    class VeryBigThing: ...

    @things.register
    def small(): ...

    things.add("Table.of", dict.fromkeys, "of_table")
    assert list(things) == ["big_thing", "short", "small", "of_table"]
    assert things["BigThing"] is things["big_thing"] is BigThing
    assert things["VeryBigThing"] is things["short"] is VeryBigThing
    assert things["Table.of"] == things["of_table"]
    assert "very_big_thing" not in things
    with pytest.raises(KeyError):
        things["nothing"]


@pytest.mark.parametrize(("python", "name"), [("Other", "taken"), ("Taken", None), ("taken", None), ("Taken", "other")])
def test_a_name_is_given_once(python, name):
    things = Registry("thing")
    things.add("Taken", 1)
    with pytest.raises(ValueError, match=r"there is a thing called (T|t)aken already: choose another name"):
        things.add(python, 2, name)


@pytest.mark.parametrize(
    ("python", "name"),
    [("LogNormalSigma", "log_normal_sigma"), ("X0", "x0"), ("DDIM", "ddim"), ("UNet", "unet"), ("FIXED_LARGE", "fixed_large")],
)
def test_snake_case(python, name):
    assert snake_case(python) == name


def test_a_name_is_given_once_among_what_one_expression_may_name():
    together = []
    one, other = Registry("one", together), Registry("other", together)
    one.add("Same", 1)
    with pytest.raises(ValueError, match="there is a one called same already"):
        other.add("same", 2)
    with pytest.raises(ValueError, match="there is a one called times already"):
        one.add("times", 2)


def test_a_part_that_is_registered_first_of_all_does_not_take_the_name_of_one_of_xhats_own():
    """The families are imported when they are first needed: before anybody's part, and not after it."""
    code = "import xhat\n@xhat.register.network\ndef unet(channels): ..."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "there is a network called unet already: choose another name" in done.stderr
