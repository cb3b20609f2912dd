"""What xhat evaluate measures of the penalties that a run was trained with."""

import json

from helpers import TINY, xhat


def test_a_run_with_a_paired_penalty_is_evaluated(tmp_path, digits, capsys):
    run, term = tmp_path / "run", ("--terms.near.loss", "image_loss(ssim(3))")
    assert xhat("train", "mnist", "--data", digits, "--run", run, "--max_steps", 2, *TINY, *term)[0] == 0
    capsys.readouterr()
    code, out, err = xhat("evaluate", run, "--n", 4, "--images", 10, "--json", capsys=capsys)
    assert (code, err) == (0, "")
    assert set(json.loads(out)["penalties"]) == {"total_variation"}
