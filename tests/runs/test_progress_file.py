"""What an interrupted measurement left is taken up again if it is of the same measurement and sound, else dropped."""

import warnings

import pytest
import torch

from xhat.bound.control import Control, cells
from xhat.bound.density import Pilot
from xhat.bound.estimate import Progress
from xhat.files.tensors import read_tensors, write_tensors
from xhat.runs.progress_file import ProgressFile

PARTS = 30


@pytest.fixture
def left(tmp_path):
    """A progress file of three images, its reader, and a way to change what it holds."""
    path = tmp_path / "bound.progress.safetensors"
    pilot = run_pilot_of(PARTS)
    ProgressFile(path, [1]).write(Progress(pilot, torch.ones(3, 3).double(), torch.ones(len(cells(PARTS))).double()))

    def read(settings=1, parts=PARTS, images=8, pilot=True):
        return len(ProgressFile(path, [settings]).read(parts, images, pilot).terms)

    def change(**tensors):
        metadata, held = read_tensors(path)
        write_tensors(path, held | tensors, metadata)

    return path, read, change


def run_pilot_of(parts):
    p = torch.full((parts,), 1 / parts, dtype=torch.float64)
    return Pilot(p, Control.none(parts), 7)


def test_progress_comes_back(left):
    assert left[1]() == 3


@pytest.mark.parametrize("arguments", [{"settings": 2}, {"parts": 31}, {"images": 2}], ids=str)
def test_progress_of_another_measurement_is_dropped_in_one_line(left, arguments):
    with pytest.warns(UserWarning, match=r"^bound\.progress\.safetensors .*starting anew$") as said:
        assert left[1](**arguments) == 0
    assert len(said) == 1


def test_progress_of_another_version_is_dropped(left, monkeypatch):
    monkeypatch.setattr("xhat.runs.progress_file.FORMAT", "later")
    with pytest.warns(UserWarning, match="starting anew"):
        assert left[1]() == 0


@pytest.mark.parametrize(
    "tensors",
    [
        {"terms": torch.ones(3, 2).double()},
        {"terms": torch.tensor(1.0).double()},
        {"terms": torch.full((3, 3), torch.nan).double()},
        {"terms": torch.ones(3, 3)},
        {"by_cell": torch.ones(3).double()},
        {"probability": torch.zeros(PARTS).double()},
        {"probability": torch.ones(PARTS - 1).double()},
        {"constant": torch.ones(PARTS, 1).double()},
        {"slope": torch.full((PARTS,), torch.inf).double()},
    ],
    ids=lambda t: next(f"{name} {tuple(x.shape)} {x.flatten()[0]}" for name, x in t.items()),
)
def test_damaged_progress_is_not_trusted(left, tensors):
    left[2](**tensors)
    with pytest.warns(UserWarning, match="starting anew"):
        assert left[1]() == 0


def test_a_file_that_is_no_progress_is_not_used(left):
    left[0].write_bytes(b"broken")
    with pytest.warns(UserWarning, match="is damaged: starting anew"):
        assert left[1]() == 0
    left[0].unlink()
    assert left[1]() == 0
    left[0].mkdir()
    with pytest.raises(OSError, match=r"bound\.progress\.safetensors"):
        left[1]()


def test_a_folder_that_cannot_be_written_is_tried_once(left, tmp_path):
    """One warning; the measurement goes on without the file."""
    file = ProgressFile(tmp_path / "nowhere" / "p.safetensors", [1])
    for expected in (1, 0):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            file.write(Progress(None, torch.ones(3, 3).double(), torch.ones(len(cells(PARTS))).double()))
        assert ["cannot write" in str(warning.message) for warning in said] == [True] * expected
