"""An objective that somebody has split over processes with `fully_shard`: all of it is what one process finds."""

from pathlib import Path

import pytest
import sharded_worker
import torch
from safetensors.torch import load_file

from helpers import process

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "parts"])
def test_training_gradients_and_samples_are_those_of_one_process(how, tmp_path):
    job = process(tmp_path, how, launcher=(*TORCHRUN, str(Path(sharded_worker.__file__))))
    expected = sharded_worker.found(lambda objective: None, slice(None), compares=how == "whole")
    assert job.wait(timeout=300) == 0, job.stderr.read()
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert ranks[0].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ranks[0][name], ranks[1][name], rtol=1e-6, atol=1e-7, msg=name, equal_nan=True)
        torch.testing.assert_close(ranks[0][name], value, rtol=2e-4, atol=2e-6, msg=name, check_dtype=False, equal_nan=True)
