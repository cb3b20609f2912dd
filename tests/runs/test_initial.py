"""Training from given weights: what comes along, what is refused, that the base term stays on."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import xhat
from xhat import load

KEEP = ("--max_steps", 2, "--compile", "off", "--log_every", 1)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.trap(26)
def test_a_runs_config_comes_along_and_its_base_term_stays(tiny_run, tmp_path, capsys):
    run = tmp_path / "tuned"
    options = ("--terms.smooth.loss", "image_loss(total_variation)", "--terms.smooth.weight", "dual_ascent(0.1)")
    assert xhat("train", "--init", tiny_run, "--run", run, *KEEP, *options, capsys=capsys)[0] == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    before = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config["init"] == str(tiny_run)
    assert config["terms"] == {
        **before["terms"],
        "smooth": {"loss": "image_loss(total_variation)", "weight": "dual_ascent(0.1)", "when": "always"},
    }
    assert (config["network"], config["data"], config["labels"]) == (before["network"], before["data"], before["labels"])
    terms = metrics(run)[-1]["terms"]
    assert set(terms) == {"denoise", "smooth", "smooth.lambda", "smooth.mean"}
    assert terms["smooth.lambda"] > 0


def test_it_starts_from_the_averaged_weights(tiny_run, tmp_path, capsys):
    """At learning rate 0 the weights are the starting ones to the last bit."""
    run = tmp_path / "still"
    frozen = ("--optimizer.lr", 0, "--optimizer.muon_lr", 0)
    assert xhat("train", "--init", tiny_run, "--run", run, *KEEP, *frozen, capsys=capsys)[0] == 0
    before, after = (load_file(r / "ema.safetensors") for r in (tiny_run, run))
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_weights_file_alone_is_enough_and_a_resume_needs_it_no_more(tiny_run, tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((tiny_run / "ema.safetensors").read_bytes())
    run = tmp_path / "tuned"
    assert xhat("train", "--init", weights, "--run", run, *KEEP, capsys=capsys)[0] == 0
    weights.unlink()
    assert xhat("train", "--run", run, "--resume", "--max_steps", 3, capsys=capsys)[0] == 0
    assert load(run).step == 3


def test_a_recipe_with_terms_alone_is_laid_over_the_runs_config(tiny_run, tmp_path, capsys):
    recipe = tmp_path / "smooth.yaml"
    recipe.write_text("terms: {smooth: {loss: image_loss(laplacian), weight: 0.1}}\nseed: 3\n")
    run = tmp_path / "tuned"
    assert xhat("train", recipe, "--init", tiny_run, "--run", run, *KEEP, capsys=capsys)[0] == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert set(config["terms"]) == {"denoise", "smooth"}
    assert config["seed"] == 3


@pytest.mark.trap(24)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "x0"), "were trained with target: v, not x0: leave target out"),
        (("--network", "unet(widths=(8, 16))"), "were trained with network"),
        (("--schedule", "flow"), "were trained with schedule: cosine, not flow"),
        (("--data", "mnist"), "are for 1 channel of 8x8, 4 classes; the data have 1 channel of 28x28, 10 classes"),
        (("--terms.smooth.loss", "image_loss(unreadable_digit)"), 'term "smooth": '),
        (("--terms.smooth.loss", "image_loss(total_variation, full_chain(ddim, 3, last(4)))"), "Last(4), but"),
        (("--terms.smooth.loss", "image_loss(total_variation)", "--terms.smooth.weight", "dual_ascnt(1)"), "did you mean"),
        (("--terms.smooth.loss", "image_loss(total_variation)", "--terms.smooth.weight", "dual_ascent(0)"), "limit"),
        (("--terms.smooth.loss", "image_loss(total_variation)", "--terms.smooth.when", "every"), "is no gate"),
        (
            ("--terms.smooth.loss", "image_loss(total_variation)", "--terms.smooth.when", "reweighted(always)"),
            "reweighted takes",
        ),
        (("--terms.smooth.loss", "image_loss(total_variation, weighting=0.1)"), "at which noise levels"),
        (("--terms.smooth.loss", "image_loss(lpips, one_step)"), "torchvision"),
        (("--terms.smooth.loss", "image_loss(high_frequencies)"), 'term "smooth" (image_loss(high_frequencies)) cannot be'),
    ],
)
def test_what_does_not_fit_is_one_line(tiny_run, tmp_path, capsys, options, message):
    run = tmp_path / "tuned"
    code, _, err = xhat("train", "--init", tiny_run, "--run", run, *KEEP, *options, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not run.exists()


def test_a_place_without_weights(tmp_path, capsys):
    code, _, err = xhat("train", "--init", tmp_path / "nowhere", "--run", tmp_path / "r", capsys=capsys)
    assert code == 2
    assert "nowhere" in err
    assert "does not exist" in err


def test_a_diffusers_checkpoint_is_trained_on_and_stands_alone(tmp_path, digits, capsys):
    """Its own network, schedule, target and variance; the run's weights file needs the folder no more."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path / "checkpoint"
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    run = tmp_path / "tuned"
    options = ("--data", digits, "--batch_size", 8, "--sampling.steps", 3, "--terms.smooth.loss", "image_loss(total_variation)")
    code, _, err = xhat("train", "--init", folder, "--run", run, *KEEP, *options, capsys=capsys)
    assert code == 0, err
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    trained = load(run)
    assert (trained.config.target, trained.denoiser.schedule.steps) == ("noise", 50)
    assert set(metrics(run)[-1]["terms"]) == {"denoise", "smooth"}
    code, _, err = xhat("train", "--init", run, "--run", tmp_path / "again", *KEEP, capsys=capsys)
    assert code == 0, err
