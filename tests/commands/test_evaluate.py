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


def test_the_frontier_names_the_fewest_calls(mnist_run, capsys):
    """By every sampler there is, in so many steps at most; guidance calls the network twice a step."""
    code, out, err = xhat("evaluate", mnist_run, "--frontier", "--steps", 5, "--n", 20, "--json", capsys=capsys)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found["fewest"]) == ["heun", "ddpm", "ddim", "euler", "dpm2m", "leapfrog"]
    assert {point["steps"] for point in found["points"]} == {4, 5}
    best = min(found["points"], key=lambda p: p["fid"])
    assert found["best"] == best
    code, out, _ = xhat("evaluate", mnist_run, "--frontier", "--steps", 4, "--n", 20, capsys=capsys)
    assert code == 0
    assert "fewest calls of the network for one sample with an FID within 5% of the lowest" in out


def test_what_the_frontier_does_not_measure_is_refused(mnist_run, capsys):
    for more, line in {
        ("--frontier", "--bound"): "--bound and --frontier are 2 measurements: name one",
        ("--frontier", "--samples", "a.npz"): "--samples is for the measurement of samples, not for --frontier: leave it out",
        ("--steps", 4): "--steps belongs to --frontier: add that",
        ("--frontier", "--steps", 0): "--steps must be at least 1",
    }.items():
        code, _, err = xhat("evaluate", mnist_run, *more, capsys=capsys)
        assert (code, err.strip()) == (2, f"xhat evaluate: {line}")
