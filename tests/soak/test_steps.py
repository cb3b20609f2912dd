"""A long run holds no more memory, and no more open files, at its end than early on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = Path(__file__).parent / "steps.py"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_memory_and_open_files_stay_as_they_are(tmp_path, request):
    """After a quarter of the steps everything has happened that happens: rows, checkpoints, pictures, measurements."""
    steps = 20_000 if request.config.getoption("--soak") else 2_000
    command = [sys.executable, STEPS, str(steps), tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    held = [row for row in json.loads(done.stdout.splitlines()[-1]) if row[0] >= steps // 4]
    early, late = held[: len(held) // 3], held[-len(held) // 3 :]
    memory = [max(row[1] for row in rows) for rows in (early, late)]
    print(f"{steps} steps: {memory[0] / 2**20:.1f} MiB at most early on, {memory[1] / 2**20:.1f} MiB at the end")
    assert memory[1] <= 1.01 * memory[0]
    assert max(row[2] for row in late) <= max(row[2] for row in early)
    assert len(list((tmp_path / "run" / "samples").iterdir())) <= 66
