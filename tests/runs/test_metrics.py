"""metrics.jsonl: what was written is read, what a crash or an interruption left over is not, and damage is said."""

import json

import pytest

from helpers import TINY, xhat
from xhat.runs.metrics import Mark, append_metrics, read_metrics, restore_metrics
from xhat.runs.places import METRICS

TAILS = [b'{"step": 3, "ima', b"\x00"]
LINES = [b"\xff\xfe\n", b"3\n", b"{}\n", b'{"step": 1, "images": 1, "seconds": 1, "images_per_second": 1}\n']


def row(step, **more):
    return {"step": step, "images": 16 * step, "seconds": 0.1 * step, "images_per_second": 160.0, **more}


def test_rows_come_back_as_they_were_written(tmp_path):
    """Floats to the last bit, NaN as NaN."""
    rows = [row(1, loss=1 / 3, terms={"denoise": 1e-300}), row(2, loss=float("nan"))]
    for each in rows:
        append_metrics(tmp_path, each)
    assert read_metrics(tmp_path)[0] == rows[0]
    assert json.dumps(read_metrics(tmp_path)) == json.dumps(rows)
    assert read_metrics(tmp_path / "nothing") == []


@pytest.mark.parametrize("tail", TAILS)
def test_half_a_line_is_not_written_yet(tail, tmp_path):
    append_metrics(tmp_path, row(1))
    with (tmp_path / METRICS).open("ab") as file:
        file.write(tail)
    assert read_metrics(tmp_path) == [row(1)]


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_something_else_is_left_out_with_a_warning(line, tmp_path):
    append_metrics(tmp_path, row(1))
    with (tmp_path / METRICS).open("ab") as file:
        file.write(line)
    append_metrics(tmp_path, row(2))
    with pytest.warns(UserWarning, match="1 of 3 rows are damaged and left out"):
        assert read_metrics(tmp_path) == [row(1), row(2)]


def test_any_bit_of_a_row_that_flips_is_noticed(tmp_path):
    append_metrics(tmp_path, row(1, loss=0.25))
    append_metrics(tmp_path, row(2, loss=0.5))
    good = (tmp_path / METRICS).read_bytes()
    for place in range(good.index(b"\n")):
        for bit in (1, 8, 128):
            (tmp_path / METRICS).write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            with pytest.warns(UserWarning, match="damaged and left out"):
                assert read_metrics(tmp_path) == [row(2, loss=0.5)], good[place : place + 1]


def test_rows_of_an_earlier_version_have_no_checksum(tmp_path):
    (tmp_path / METRICS).write_text("".join(json.dumps(row(step)) + "\n" for step in (1, 2)))
    assert read_metrics(tmp_path) == [row(1), row(2)]


@pytest.mark.parametrize("end", TAILS + LINES)
def test_an_interrupted_run_goes_on_from_its_checkpoint(end, tmp_path):
    """Later rows and half a line are dropped; what is kept is the same to the last byte."""
    mark = Mark()
    for step in (1, 2):
        mark = append_metrics(tmp_path, row(step, loss=1 / 3), mark)
    kept = (tmp_path / METRICS).read_bytes()
    append_metrics(tmp_path, row(3))
    with (tmp_path / METRICS).open("ab") as file:
        file.write(end)
    assert restore_metrics(tmp_path, 2, mark) == mark
    assert (tmp_path / METRICS).read_bytes() == kept


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: data.replace(b"160.0", b"170.0", 1), lambda data: b""]
)
def test_rows_that_are_not_those_of_the_checkpoint_are_said(damage, tmp_path):
    mark = Mark()
    for step in (1, 2, 3):
        mark = append_metrics(tmp_path, row(step), mark)
    (tmp_path / METRICS).write_bytes(damage((tmp_path / METRICS).read_bytes()))
    kept = len([line for line in (tmp_path / METRICS).read_text().splitlines() if '160.0, "crc32"' in line and line[-1] == "}"])
    with pytest.warns(UserWarning, match=f"is not as it was at step 3: {kept} rows of it are kept"):
        restored = restore_metrics(tmp_path, 3, mark)
    assert restored.size == (tmp_path / METRICS).stat().st_size


def test_a_run_whose_metrics_are_damaged_is_resumed(tmp_path, digits):
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 2, *TINY)[0] == 0
    with (run / METRICS).open("ab") as file:
        file.write(b"\xff\n")
    assert xhat("train", "--run", run, "--resume", "--max_steps", 3)[0] == 0
    assert [each["step"] for each in read_metrics(run)] == [1, 2, 3]
