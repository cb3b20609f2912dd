"""What a run was trained with, in a file; it need not be there."""

import pytest
import torch

import xhat
from xhat.runs.environment import read_environment, write_environment
from xhat.runs.places import ENVIRONMENT


def test_versions_and_the_kind_of_machine(tmp_path):
    write_environment(tmp_path)
    found = read_environment(tmp_path)
    assert (found["xhat"], found["torch"]) == (xhat.__version__, torch.__version__)
    assert found.keys() == {"xhat", "torch", "python", "system", "device"}


def test_a_run_without_the_file_has_nothing_to_tell(tmp_path):
    assert read_environment(tmp_path) == {}
    (tmp_path / ENVIRONMENT).write_text("{")
    with pytest.warns(UserWarning, match=r"environment.json is damaged and left out: it is not JSON"):
        assert read_environment(tmp_path) == {}
