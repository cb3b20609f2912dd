"""metrics.jsonl: what was written is read, what a crash or an interruption left over is not."""

import json

import pytest

from helpers import TINY, xhat
from xhat.runs.metrics import METRICS, append_metrics, forget_metrics, read_metrics

ENDS = [b'{"step": 3, "ima', b"\xff\xfe\n", b"3\n", b"{}\n", b"\x00"]


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


@pytest.mark.parametrize("end", ENDS)
def test_half_a_line_is_none(end, tmp_path):
    append_metrics(tmp_path, row(1))
    with (tmp_path / METRICS).open("ab") as file:
        file.write(end)
    assert read_metrics(tmp_path) == [row(1)]


@pytest.mark.parametrize("end", ENDS)
def test_an_interrupted_run_goes_on_from_its_checkpoint(end, tmp_path):
    """Later rows and half a line are dropped; what is kept is the same to the last byte."""
    for step in (1, 2):
        append_metrics(tmp_path, row(step, loss=1 / 3))
    kept = (tmp_path / METRICS).read_bytes()
    append_metrics(tmp_path, row(3))
    with (tmp_path / METRICS).open("ab") as file:
        file.write(end)
    forget_metrics(tmp_path, 2)
    assert (tmp_path / METRICS).read_bytes() == kept


def test_a_run_whose_metrics_are_damaged_is_resumed(tmp_path, digits):
    run = tmp_path / "run"
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 2, *TINY)[0] == 0
    with (run / METRICS).open("ab") as file:
        file.write(b"\xff\n")
    assert xhat("train", "--run", run, "--resume", "--max_steps", 3)[0] == 0
    assert [each["step"] for each in read_metrics(run)] == [1, 2, 3]
