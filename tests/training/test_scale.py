"""What a process holds and sends is what the formulas of docs/scale.md say, as counted on 2 and 4 gloo processes."""

from pathlib import Path

import pytest

from helpers import process

SCALE = Path(__file__).parent.parent.parent / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_counts_are_what_the_formulas_say():
    """The benchmark ends with an error where one is more than 2 % beside its formula."""
    job = process(launcher=(str(SCALE),))
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    rows = [words for words in map(str.split, out.splitlines()) if "MiB" in words]
    assert [(row[0], row[1]) for row in rows] == [(n, kind) for n in ("2", "4") for kind in ("whole", "split", "blocks")]
    assert all(row[2 : len(row) : 4] == row[4 : len(row) : 4] for row in rows)
